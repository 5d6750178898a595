"""Weights in Hugging Face's formats, found at once and read later."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path

import torch
from safetensors.torch import load_file

from neuron_double.journal import record

CANDIDATES = (
    "model.safetensors",
    "model.safetensors.index.json",
    "pytorch_model.bin",
    "pytorch_model.bin.index.json",
    "DecoderLMHead.safetensors",  # of save(..., sharded_weights=True)
)


def find_weights(folder: Path) -> Path:
    """The first of the formats that is there. Raises FileNotFoundError."""
    for name in CANDIDATES:
        if (folder / name).exists():
            return folder / name
    raise FileNotFoundError(f"Can not find model.safetensors or pytorch_model.bin in {folder}")


def read_weights(path: Path) -> dict[str, torch.Tensor]:
    """Every tensor of a checkpoint by name."""
    record("weights_read", path=str(path))
    time.sleep(float(os.environ.get("NEURON_STANDIN_LOAD_SECONDS", 0)))
    if path.is_dir():  # pytorch_model.bin/, as save_pretrained_split writes it
        files = json.loads((path / "key_to_filename.json").read_text())
        return {key: torch.load(path / name) for key, name in files.items()}
    if path.name == "DecoderLMHead.safetensors":
        parts = [_read_file(part) for part in sorted(path.parent.glob("*.safetensors"))]
        return {key: tensor for part in parts for key, tensor in part.items()}
    if path.suffix == ".json":
        names = sorted(set(json.loads(path.read_text())["weight_map"].values()))
        shards = [_read_file(path.parent / name) for name in names]
        return {key: tensor for shard in shards for key, tensor in shard.items()}
    return _read_file(path)


def _read_file(path: Path) -> dict[str, torch.Tensor]:
    if path.suffix == ".safetensors":
        return load_file(path)
    return torch.load(path, map_location="cpu", weights_only=True)
