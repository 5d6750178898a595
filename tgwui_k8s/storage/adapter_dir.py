"""Adapters' names to folders: those of `--lora`, and those that lie in `--lora-dir`. Read only."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from tgwui_k8s.errors import ModelNotFoundError, StartupError, UsageError
from tgwui_k8s.storage.adapter_files import CONFIG_FILE
from tgwui_k8s.storage.model_files import ModelFiles

_DEEPEST = 2
"""Levels below the directory: publisher/adapter."""


def named_adapters(given: Sequence[str], lora_dir: str | None) -> dict[str, str]:
    """What `--lora NAME=PATH`, `--lora PATH` and `--lora NAME` (in the directory) mean.

    Raises `UsageError` for an empty or a repeated name.
    """
    adapters: dict[str, str] = {}
    for text in given:
        name, separator, path = text.partition("=")
        if not separator:
            name, path = Path(text).name, text
        if not name or not path:
            raise UsageError(f"--lora '{text[:100]}' is not of the form NAME=PATH")
        if name in adapters:
            raise UsageError(f"--lora names the adapter '{name[:100]}' twice")
        below = Path(lora_dir or "", path)
        adapters[name] = str(below if lora_dir and below.is_dir() else Path(path))
    return adapters


def list_adapters(lora_dir: str | None) -> list[str]:
    """Names of the adapters in the directory; none without one, or where it cannot be read."""
    return [] if lora_dir is None else sorted(_adapters_below(Path(lora_dir), "", _DEEPEST))


def find_adapter(name: str, lora_dir: str | None) -> Path:
    """Where an adapter that a client has named lies. Raises `ModelNotFoundError`."""
    if lora_dir is None:
        raise ModelNotFoundError(
            "no adapters can be loaded over HTTP: the server was started without --lora-dir"
        )
    known = list_adapters(lora_dir)
    if name not in known:
        shown = ", ".join(known[:8]) + (f" and {len(known) - 8} more" if len(known) > 8 else "")
        there = f"there are: {shown}" if shown else "there are none"
        raise ModelNotFoundError(f"there is no adapter '{name[:200]}'; {there}")
    return Path(lora_dir, name)


def _adapters_below(folder: Path, prefix: str, levels: int) -> list[str]:
    try:
        files = ModelFiles.read(folder)
    except StartupError:
        return []
    if prefix and CONFIG_FILE in files.names:
        return [prefix]
    if not levels:
        return []
    return [
        name
        for child in files.folders
        if not child.startswith(".")
        for name in _adapters_below(folder / child, f"{prefix}/{child}".lstrip("/"), levels - 1)
    ]
