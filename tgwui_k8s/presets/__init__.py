"""Sampler presets: named sets of sampler values, one small YAML file each.

The names are text-generation-webui's, the values our own. A preset holds field names of the API;
a directory of the operator's (`--preset-dir`) adds presets and replaces built-in ones of the same
name. Files are read when they are asked for, so a changed ConfigMap counts at once.
"""

from __future__ import annotations

from pathlib import Path

import yaml

from tgwui_k8s.errors import InternalError, InvalidRequestError

MAX_PRESET_BYTES = 64 * 1024
_BUILTIN = Path(__file__).parent
_SUFFIX = ".yaml"
_MAX_LISTED = 50


def preset_names(directory: Path | None = None) -> list[str]:
    """All preset names, sorted: the built-in ones and those of `directory`.

    A directory that cannot be read adds nothing.
    """
    return sorted({name for folder in _folders(directory) for name in _names_in(folder)})


def load_preset(name: str, directory: Path | None = None) -> dict[str, object]:
    """The values of a preset, by field name of the API; the values are not checked here.

    Raises `InvalidRequestError` (param `preset`) for a name that is none, and `InternalError`
    for a file that cannot be read or holds no mapping. A name is never a path.
    """
    if not _is_path(name):
        for folder in _folders(directory):
            file = folder / f"{name}{_SUFFIX}"
            if file.is_file():
                return _read(name, file)
    shown = name[:100].encode(errors="replace").decode()
    listed = ", ".join(preset_names(directory)[:_MAX_LISTED])
    raise InvalidRequestError(
        f"There is no preset '{shown}'. The presets are: {listed}.", param="preset"
    )


def _folders(directory: Path | None) -> list[Path]:
    """Where presets lie, the operator's first."""
    return [_BUILTIN] if directory is None else [directory, _BUILTIN]


def _names_in(folder: Path) -> list[str]:
    try:
        entries = [entry.name for entry in folder.iterdir() if entry.is_file()]
    except OSError:
        return []
    names = [name.removesuffix(_SUFFIX) for name in entries if name.endswith(_SUFFIX)]
    return [name for name in names if not _is_path(name)]


def _is_path(name: str) -> bool:
    """True for anything but a plain file name."""
    if not name.isprintable() or any(separator in name for separator in "/\\"):
        return True
    return not name or name.startswith(".") or len(name.encode()) > 200


def _read(name: str, file: Path) -> dict[str, object]:
    try:
        with file.open("rb") as stream:
            content = stream.read(MAX_PRESET_BYTES + 1)
        values = yaml.safe_load(content) if len(content) <= MAX_PRESET_BYTES else None
    except (OSError, yaml.YAMLError, UnicodeDecodeError, RecursionError):
        values = None
    if not isinstance(values, dict) or not all(isinstance(key, str) for key in values):
        raise InternalError(
            f"The preset '{name}' is not a YAML mapping of sampler fields.", retryable=False
        )
    return values
