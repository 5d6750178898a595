"""Which files hold a model's weights, and whether they are whole. No torch, nothing is mapped.

Looked for in this order, as Transformers does: `model.safetensors`, the shards that
`model.safetensors.index.json` lists, `pytorch_model.bin`, the shards of its index.
"""

from __future__ import annotations

import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from tgwui_k8s.errors import BrokenModelError
from tgwui_k8s.storage.model_files import read_json
from tgwui_k8s.storage.safetensors_file import DOWNLOAD_AGAIN, TensorEntry, read_header

_PICKLE_START = b"\x80"


@dataclass(frozen=True, slots=True)
class WeightFiles:
    """The weight files of one model folder, checked.

    `tensors` is by name, and empty for "bin": pickles tell nothing before they are loaded.
    """

    format: Literal["safetensors", "bin", "gguf"]
    files: tuple[Path, ...]
    tensors: dict[str, TensorEntry]
    num_bytes: int


def find_weights(folder: Path) -> WeightFiles:
    """The weight files of a model folder.

    Raises `BrokenModelError` that names the file: none at all, a shard missing, truncated or in
    contradiction to the index, an index that is no JSON.
    """
    for name in ("model.safetensors", "pytorch_model.bin"):
        if (folder / name).exists():
            return _check_files([folder / name])
        index = folder / f"{name}.index.json"
        if index.exists():
            return _check_shards(index)
    raise BrokenModelError(
        f"no weights in {folder}: neither model.safetensors nor pytorch_model.bin nor an index "
        "of shards; copy the whole model folder"
    )


def _check_files(files: list[Path]) -> WeightFiles:
    num_bytes = sum(file.stat().st_size for file in files)
    if files[0].suffix == ".bin":
        for file in files:
            _check_pickle(file)
        return WeightFiles("bin", tuple(files), {}, num_bytes)
    tensors: dict[str, TensorEntry] = {}
    for file in files:
        tensors.update(read_header(file))
    return WeightFiles("safetensors", tuple(files), tensors, num_bytes)


def _check_shards(index: Path) -> WeightFiles:
    weight_map = read_json(index).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise BrokenModelError(f"{index.name} has no weight_map; {DOWNLOAD_AGAIN} ({index})")
    names = sorted({str(name) for name in weight_map.values()})
    for name in names:
        if Path(name).name != name:
            raise BrokenModelError(
                f"{index.name} names the shard '{name}' outside of the model folder"
            )
        if not (index.parent / name).exists():
            raise BrokenModelError(
                f"shard {name} is missing in {index.parent} ({len(names)} are listed in "
                f"{index.name}); copy it there"
            )
    weights = _check_files([index.parent / name for name in names])
    if weights.format == "safetensors":
        for tensor, name in weight_map.items():
            if tensor not in weights.tensors or weights.tensors[tensor].file.name != name:
                raise BrokenModelError(
                    f"{name} does not hold tensor '{tensor}' that {index.name} promises: "
                    "the shards are of different versions; copy the whole model folder again"
                )
    return weights


def _check_pickle(path: Path) -> None:
    # A zip archive ends with its directory, so a truncated one is not recognised as a zip.
    try:
        with path.open("rb") as file:
            start = file.read(8)
    except OSError as error:
        raise BrokenModelError(f"cannot read {path}: {error.strerror}") from error
    if not zipfile.is_zipfile(path) and not start.startswith(_PICKLE_START):
        raise BrokenModelError(
            f"{path.name} is truncated or no PyTorch checkpoint; {DOWNLOAD_AGAIN} ({path})"
        )
