"""The model directory: names to paths, and paths to names. Read only.

A model is a folder or a file below the directory, by its path relative to it. Of several GGUF files
in a folder, the name of a quantization picks one (`Llama-2-7B-GGUF:Q4_K_M`), or a pattern as the
last part of the path (`Llama-2-7B-GGUF/*Q4_K_M*`). `demo` is the built-in model.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from difflib import get_close_matches
from fnmatch import fnmatch
from pathlib import Path, PurePosixPath

from tgwui_k8s import demo
from tgwui_k8s.errors import BrokenModelError, ModelNotFoundError, StartupError
from tgwui_k8s.storage.gguf_files import first_parts
from tgwui_k8s.storage.infer import GGUF_PATTERN, WEIGHTS_PATTERN
from tgwui_k8s.storage.model_files import ModelFiles

DEMO = "demo"
TOKENIZER_FILE = "tokenizer.json"

_DEEPEST = 4
"""Levels below the directory that are searched for models (publisher/model/variant, and one)."""
_MOST_MODELS = 1000


def resolve_model(name: str, model_dir: str | Path, *, over_http: bool = False) -> Path:
    """The path of a model.

    On the command line `name` may also be an absolute path, or begin with `./`, `../` or `~/`.
    Over HTTP the model must lie in the directory, links followed, and messages show no paths.
    Raises `ModelNotFoundError`, which lists names that resemble it.
    """
    if name == DEMO:
        return demo.model_path()
    root = Path(model_dir)
    if over_http:
        _refuse_outside(name, root)
    path = _to_path(name, root, over_http=over_http)
    if path is not None and _exists(path, name):
        return path
    raise ModelNotFoundError(_not_found(name, root, over_http=over_http))


def list_models(model_dir: str | Path) -> list[str]:
    """Names of everything in the directory that looks like a model, or tries to.

    A folder directly below the directory is listed even if it holds no model, so that a broken
    download shows; deeper folders only if they hold one. Links that leave the directory are left
    out, because they could not be named over HTTP. Raises `ModelNotFoundError` without directory.
    """
    root = Path(model_dir)
    try:
        top = ModelFiles.read(root)
    except BrokenModelError as error:
        raise ModelNotFoundError(f"the model directory cannot be read: {error}") from None
    if top.is_file:
        raise ModelNotFoundError(f"{root} is a file; a directory of models is wanted")
    names = list(first_parts(top.matching(GGUF_PATTERN)))
    for folder in sorted(top.folders):
        if not folder.startswith(".") and _is_inside(root / folder, root):
            names += list(_models_below(root, PurePosixPath(folder))) or [folder]
    return sorted(names[:_MOST_MODELS], key=str.lower)


def tokenizer_folder(model: Path) -> Path:
    """Where the tokenizer and chat template of a model lie.

    The model's own folder; `tokenizer/` in a Neuron folder; beside a single file.
    """
    if model.is_file():
        return model.parent
    apart = model / "tokenizer"
    return apart if apart.is_dir() and (model / "model").is_dir() else model


def _models_below(root: Path, name: PurePosixPath) -> Iterator[str]:
    """`name` if it is a model, else the models in its folders; several GGUFs are several models."""
    try:
        files = ModelFiles.read(root / name)
    except StartupError:
        return
    ggufs = first_parts(files.matching(GGUF_PATTERN))
    is_model = (
        "config.json" in files.names
        or files.has(WEIGHTS_PATTERN)
        or files.folder_has("model", r"config\.json")
    )
    if len(ggufs) > 1:
        yield from (str(name / gguf) for gguf in ggufs)
    elif ggufs or is_model:
        yield str(name)
    elif len(name.parts) < _DEEPEST:
        for folder in sorted(files.folders):
            if not folder.startswith(".") and _is_inside(root / name / folder, root):
                yield from _models_below(root, name / folder)


def _to_path(name: str, root: Path, *, over_http: bool) -> Path | None:
    """Where the name leads, whether or not something is there; None for a pattern without match."""
    if "\0" in name or not name:
        return None
    is_path = name.startswith(("./", "../", "~/", "/")) or name in (".", "..")
    path = Path(os.path.expanduser(name)) if is_path and not over_http else root / name
    if _exists(path, name):
        return path
    # `folder:Q4_K_M` is short for the pattern `folder/*Q4_K_M*`.
    folder, colon, tag = path.name.rpartition(":")
    if colon and folder and tag:
        path = path.with_name(folder) / f"*{tag}*"
    is_pattern = any(character in path.name for character in "*?[")
    return _match(path, name) if is_pattern else path


def _exists(path: Path, name: str) -> bool:
    try:
        path.stat()
    except PermissionError:
        raise ModelNotFoundError(
            f"model '{name[:200]}' cannot be read: permission denied"
        ) from None
    except OSError:
        return False
    return True


def _match(pattern: Path, name: str) -> Path | None:
    try:
        files = ModelFiles.read(pattern.parent)
    except StartupError:
        return None
    candidates = first_parts(files.matching(GGUF_PATTERN)) + sorted(files.folders)
    matches = [item for item in candidates if fnmatch(item.lower(), pattern.name.lower())]
    if len(matches) > 1:
        shown = ", ".join(matches[:8])
        raise ModelNotFoundError(f"'{name[:200]}' matches {len(matches)} models: {shown}")
    return pattern.parent / matches[0] if matches else None


def _refuse_outside(name: str, root: Path) -> None:
    """Raise unless the name is relative, without `..`, and stays in the directory by its links."""
    parts = PurePosixPath(name).parts
    is_plain = parts and not name.startswith(("/", "~")) and "\\" not in name and "\0" not in name
    if not is_plain or ".." in parts or not _is_inside(root / name, root):
        raise ModelNotFoundError(
            f"'{name[:200]}' is not allowed: a model is named by its path in the model directory"
        )


def _is_inside(path: Path, root: Path) -> bool:
    try:
        return path.resolve().is_relative_to(root.resolve())
    except (OSError, RuntimeError):  # a loop of links
        return False


def _not_found(name: str, root: Path, *, over_http: bool) -> str:
    place = "" if over_http else f" in {root}/"
    try:
        names = [DEMO, *list_models(root)]
    except ModelNotFoundError as error:
        detail = "" if over_http else f": {error}"
        return f"there is no model '{name[:200]}'{detail}; '{DEMO}' is built in"
    by_lower = {known.lower(): known for known in names}
    near = [by_lower[match] for match in get_close_matches(name.lower(), by_lower, n=3)]
    if near:
        return f"there is no model '{name[:200]}'{place}; did you mean {', '.join(near)}?"
    shown = ", ".join(names[:8]) + (f" and {len(names) - 8} more" if len(names) > 8 else "")
    return f"there is no model '{name[:200]}'{place}; there are: {shown}"
