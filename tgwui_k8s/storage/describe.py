"""What is known of a model before it is loaded: for `tgwui-k8s models` and `/v1/internal`.

Reads names, sizes, `config.json` and GGUF headers; never weights. A broken model is described by
its error instead of raising it.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tgwui_k8s.errors import StartupError
from tgwui_k8s.storage.gguf_files import parts_of, pick_gguf
from tgwui_k8s.storage.gguf_header import read_gguf_header
from tgwui_k8s.storage.infer import infer_loader
from tgwui_k8s.storage.loader_names import LLAMA_CPP
from tgwui_k8s.storage.model_dir import DEMO, list_models, resolve_model
from tgwui_k8s.storage.model_files import ModelFiles

_CONTEXT_KEYS = (
    "max_position_embeddings",
    "n_positions",
    "max_sequence_length",
    "max_seq_len",
    "seq_length",
    "n_ctx",
)


@dataclass(frozen=True, kw_only=True)
class ModelDescription:
    """One row of the list of models; None where the model does not say."""

    name: str
    path: str
    loader: str | None = None
    reason: str = ""
    """The sign that led to the loader."""
    size_bytes: int = 0
    quantization: str | None = None
    context_length: int | None = None
    architecture: str | None = None
    dtype: str | None = None
    error: str | None = None
    """Why it cannot be loaded; the other fields hold what could be read."""


def describe_model(path: Path, name: str) -> ModelDescription:
    """Describe the model at `path`, listed as `name`. Never raises for what it finds there."""
    facts: dict[str, Any] = {"name": name, "path": str(path), "size_bytes": _size(path)}
    try:
        inference = infer_loader(path)
        facts |= {"loader": inference.loader, "reason": inference.reason}
        facts |= _gguf_facts(path) if inference.loader == LLAMA_CPP else _config_facts(path)
    except (StartupError, OSError) as error:
        facts["error"] = str(error)
    return ModelDescription(**facts)


def describe_models(model_dir: str | Path) -> list[ModelDescription]:
    """The built-in demo model and everything in the directory.

    Raises `ModelNotFoundError` where there is no such directory.
    """
    names = [DEMO, *(name for name in list_models(model_dir) if name != DEMO)]
    return [describe_model(resolve_model(name, model_dir), name) for name in names]


def _gguf_facts(path: Path) -> dict[str, Any]:
    file = pick_gguf(path)
    header = read_gguf_header(file)
    return {
        "size_bytes": sum(_size(part) for part in parts_of(file)),
        "quantization": header.file_type,
        "context_length": header.context_length,
        "architecture": header.architecture,
    }


def _config_facts(path: Path) -> dict[str, Any]:
    files = ModelFiles.read(path)
    architectures = files.config.get("architectures")
    architecture = architectures[0] if isinstance(architectures, list) and architectures else None
    return {
        "quantization": _quantization(files),
        "context_length": _first(files, _CONTEXT_KEYS, int),
        "architecture": architecture if isinstance(architecture, str) else None,
        "dtype": _first(files, ("dtype", "torch_dtype"), str),
    }


def _quantization(files: ModelFiles) -> str | None:
    """The method with its bits, such as `awq 4 bit`."""
    quantization = files.quantization
    if not quantization:
        return None
    bits = quantization.get("bits", quantization.get("w_bit"))
    method = files.quantization_method
    if not method:
        method = "awq" if "w_bit" in quantization else "gptq"
    return f"{method} {bits} bit" if isinstance(bits, int) else method


def _first(files: ModelFiles, keys: tuple[str, ...], kind: type) -> Any:
    for config in (files.text_config, files.config):
        for key in keys:
            value = config.get(key)
            if isinstance(value, kind) and not isinstance(value, bool):
                return value
    return None


def _size(path: Path) -> int:
    """Bytes of a file, or of all files of a folder; what cannot be read counts nothing."""
    if not path.is_dir():
        return _file_size(path)
    return sum(
        _file_size(Path(folder, name)) for folder, _, names in os.walk(path) for name in names
    )


def _file_size(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError:
        return 0
