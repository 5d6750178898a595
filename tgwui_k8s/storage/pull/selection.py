"""Which files of a repository a model needs."""

from __future__ import annotations

from collections.abc import Sequence
from fnmatch import fnmatch

from tgwui_k8s.errors import DownloadError
from tgwui_k8s.storage.pull.snapshot import RemoteFile

_DUPLICATES = (
    *("*.bin", "*.pt", "*.pth", "*.ckpt", "*.h5", "*.msgpack", "*.ot", "*.tflite"),
    *("*.onnx", "*.onnx_data", "original/*", "consolidated*.safetensors"),
)
"""The same weights in other formats, where there are safetensors files."""
_NEVER = ("*.md", "*.gitattributes", ".gitattributes", "*.png", "*.jpg", "*.gif", "*.mp4", "*.pdf")


def select(
    files: Sequence[RemoteFile], include: Sequence[str], exclude: Sequence[str]
) -> tuple[RemoteFile, ...]:
    """The files to fetch. `include` says which and nothing else decides; `exclude` beats it.

    Without `include`: all but pictures, texts, and weights that safetensors files hold already.
    Raises `DownloadError` when nothing is left, and for a repository of several GGUF models.
    """
    chosen = [file for file in files if not _matches(file, exclude)]
    if include:
        chosen = [file for file in chosen if _matches(file, include)]
    else:
        has_safetensors = any(_matches(file, ("model*.safetensors",)) for file in chosen)
        left_out = (*_NEVER, *(_DUPLICATES if has_safetensors else ()))
        chosen = [file for file in chosen if not _matches(file, left_out)]
        _refuse_many_ggufs(chosen)
    if not chosen:
        raise DownloadError(f"none of the source's {len(files)} files is wanted")
    return tuple(chosen)


def _refuse_many_ggufs(files: Sequence[RemoteFile]) -> None:
    """A repository of quantizations is ten models: nobody wants them all."""
    ggufs = [file.path for file in files if file.path.endswith(".gguf") and "-of-" not in file.path]
    if len(ggufs) > 1:
        raise DownloadError(
            f"there are {len(ggufs)} GGUF models: say which, as in --include '{ggufs[0]}'"
        )


def _matches(file: RemoteFile, patterns: Sequence[str]) -> bool:
    return any(fnmatch(file.path, pattern) for pattern in patterns)
