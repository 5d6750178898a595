"""Which GGUF file of a folder is meant: sets of several parts count as one, `mmproj` as none."""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path

from tgwui_k8s.errors import BrokenModelError, UnsupportedModelError
from tgwui_k8s.storage.infer import GGUF_PATTERN
from tgwui_k8s.storage.model_files import ModelFiles

_PART = re.compile(r"(?P<stem>.+)-(?P<number>\d{5})-of-(?P<count>\d{5})\.gguf", re.IGNORECASE)


def first_parts(names: Iterable[str]) -> list[str]:
    """The names that stand for a whole model: single files, and the first part of each set."""
    parts = ((name, _PART.fullmatch(name)) for name in sorted(names))
    return [name for name, part in parts if part is None or int(part["number"]) == 1]


def parts_of(path: Path) -> list[Path]:
    """All files of the set that `path` belongs to, in order; just `path` for a single file."""
    part = _PART.fullmatch(path.name)
    if part is None:
        return [path]
    count = int(part["count"])
    stem, suffix = part["stem"], path.suffix
    return [
        path.with_name(f"{stem}-{number:05}-of-{count:05}{suffix}")
        for number in range(1, count + 1)
    ]


def pick_gguf(path: Path) -> Path:
    """The file to load: `path` itself, or the only model of a folder (the first part of a set).

    Raises `UnsupportedModelError` where the folder holds several, naming them, and
    `BrokenModelError` where parts are missing.
    """
    if path.is_file():
        return _checked(path)
    models = first_parts(ModelFiles.read(path).matching(GGUF_PATTERN))
    if len(models) == 1:
        return _checked(path / models[0])
    if not models:
        raise BrokenModelError(f"{path} holds no GGUF model, or only later parts of one")
    shown = ", ".join(models[:8]) + (", ..." if len(models) > 8 else "")
    raise UnsupportedModelError(
        f"{path.name} holds {len(models)} GGUF models; name one of them, or its quantization, as "
        f"in '{path.name}:Q4_K_M': {shown}"
    )


def _checked(path: Path) -> Path:
    parts = parts_of(path)
    missing = [part.name for part in parts if not part.is_file()]
    if missing:
        raise BrokenModelError(f"{path.parent}: {', '.join(missing[:3])} of a GGUF set is missing")
    return parts[0]
