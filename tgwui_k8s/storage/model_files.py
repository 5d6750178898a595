"""What lies at a model's path: file names and its small JSON files, read once and never written.

The weights themselves are not opened here.
"""

from __future__ import annotations

import json
import os
import re
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from tgwui_k8s.errors import BrokenModelError, ModelNotFoundError

_LARGEST_JSON = 16 * 1024 * 1024


@dataclass(frozen=True)
class ModelFiles:
    """A model folder, or a single file, as its names and its configuration describe it."""

    path: Path
    names: frozenset[str]
    """Files directly in the folder; for a single file its own name."""
    folders: frozenset[str]

    @classmethod
    def read(cls, path: Path) -> ModelFiles:
        """List what is at `path`. Raises `ModelNotFoundError` or `BrokenModelError`."""
        try:
            if path.is_file():
                return cls(path, frozenset({path.name}), frozenset())
            with os.scandir(path) as entries:
                is_folder = {entry.name: entry.is_dir() for entry in entries if _is_there(entry)}
        except FileNotFoundError:
            raise ModelNotFoundError(f"{path} does not exist") from None
        except OSError as error:
            raise BrokenModelError(f"cannot read {path}: {error.strerror}") from None
        folders = frozenset(name for name in is_folder if is_folder[name])
        return cls(path, frozenset(is_folder) - folders, folders)

    @cached_property
    def is_file(self) -> bool:
        """True where the model is one file."""
        return self.path.is_file()

    @property
    def name(self) -> str:
        """The name of the folder or file, in lower case."""
        return self.path.name.lower()

    def matching(self, pattern: str) -> list[str]:
        """File names that match a regular expression as a whole, case ignored; sorted."""
        expression = re.compile(pattern, re.IGNORECASE)
        return sorted(name for name in self.names if expression.fullmatch(name))

    def has(self, pattern: str) -> bool:
        """True where a file name matches."""
        return bool(self.matching(pattern))

    def folder_has(self, folder: str, pattern: str) -> bool:
        """True where a file in this folder's subfolder matches."""
        if folder not in self.folders:
            return False
        try:
            return ModelFiles.read(self.path / folder).has(pattern)
        except BrokenModelError:
            return False

    @cached_property
    def config(self) -> dict[str, Any]:
        """`config.json` (a Neuron folder keeps it in `model/`); empty where there is none.

        Raises `BrokenModelError` where it is not JSON.
        """
        for folder in (self.path, self.path / "model"):
            if (folder / "config.json").is_file():
                return read_json(folder / "config.json")
        return {}

    @cached_property
    def quantization(self) -> dict[str, Any]:
        """How the weights are quantized, by `config.json` or else the files of older tools."""
        found = self.config.get("quantization_config")
        if not isinstance(found, dict):
            found = self.text_config.get("quantization_config")
        if isinstance(found, dict) and found:
            return found
        for name in ("quant_config.json", "quantize_config.json"):
            if name in self.names:
                return read_json(self.path / name)
        return {}

    @property
    def quantization_method(self) -> str:
        """`quant_method` in lower case, or an empty text where none is named."""
        quantization = self.quantization
        method = quantization.get("quant_method")
        if isinstance(method, str):
            return method.lower().replace("_", "-")
        if quantization.get("load_in_4bit") or quantization.get("load_in_8bit"):
            return "bitsandbytes"
        return ""

    @property
    def text_config(self) -> dict[str, Any]:
        """The part of `config.json` about the language model: nested in multi-modal models."""
        nested = self.config.get("text_config")
        return nested if isinstance(nested, dict) else self.config


def _is_there(entry: os.DirEntry[str]) -> bool:
    """False for a link that leads nowhere, or in a circle."""
    try:
        return entry.is_file() or entry.is_dir()
    except OSError:
        return False


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object from a small file. Raises `BrokenModelError` that names the file."""
    try:
        if path.stat().st_size > _LARGEST_JSON:
            raise BrokenModelError(f"{path} is too large for a configuration file")
        text = path.read_bytes()
        if text.startswith(b"version https://git-lfs"):
            raise BrokenModelError(f"{path} is a Git LFS pointer: run 'git lfs pull' there")
        content = json.loads(text)
    except OSError as error:
        raise BrokenModelError(f"cannot read {path}: {error.strerror}") from None
    except (ValueError, RecursionError) as error:
        reason = " ".join(str(error).split())[:200]
        raise BrokenModelError(f"{path} is not valid JSON: {reason}") from None
    if not isinstance(content, dict):
        raise BrokenModelError(f"{path} holds no JSON object")
    return content
