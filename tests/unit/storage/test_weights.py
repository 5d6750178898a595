"""Which weight files are found, and what is said about broken ones."""

from __future__ import annotations

import json
import zipfile
from pathlib import Path
from typing import Any

import pytest

from tgwui_k8s.errors import BrokenModelError
from tgwui_k8s.storage.weights import find_weights


def write_safetensors(path: Path, tensors: dict[str, tuple[str, list[int], int]]) -> Path:
    """A file of zeros with a header of {name: (dtype, shape, number of bytes)}."""
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    offset = 0
    for name, (dtype, shape, num_bytes) in tensors.items():
        header[name] = {
            "dtype": dtype,
            "shape": shape,
            "data_offsets": [offset, offset + num_bytes],
        }
        offset += num_bytes
    raw = json.dumps(header).encode()
    path.write_bytes(len(raw).to_bytes(8, "little") + raw + bytes(offset))
    return path


def write_shards(folder: Path) -> None:
    """Two shards with an index."""
    weight_map = {}
    for number, tensor in ((1, "a"), (2, "b")):
        name = f"model-{number:05}-of-00002.safetensors"
        write_safetensors(folder / name, {tensor: ("F32", [2, 3], 24)})
        weight_map[tensor] = name
    index = {"metadata": {}, "weight_map": weight_map}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))


def error_of(folder: Path) -> str:
    """The message with which the folder is refused."""
    with pytest.raises(BrokenModelError) as caught:
        find_weights(folder)
    return str(caught.value)


def test_finds_a_single_file_and_where_its_tensors_lie(tmp_path: Path) -> None:
    """Offsets count from the start of the file, past the header."""
    file = write_safetensors(
        tmp_path / "model.safetensors", {"a": ("BF16", [4], 8), "b": ("F32", [2], 8)}
    )
    weights = find_weights(tmp_path)
    assert weights.format == "safetensors"
    assert weights.files == (file,)
    assert weights.num_bytes == file.stat().st_size
    assert weights.tensors["b"].shape == (2,)
    assert weights.tensors["b"].offset == file.stat().st_size - 8
    assert weights.tensors["a"].num_bytes == 8


def test_finds_every_shard_of_an_index(tmp_path: Path) -> None:
    """The shards' tensors come together under their names."""
    write_shards(tmp_path)
    weights = find_weights(tmp_path)
    assert [file.name for file in weights.files] == [
        "model-00001-of-00002.safetensors",
        "model-00002-of-00002.safetensors",
    ]
    assert set(weights.tensors) == {"a", "b"}


def test_prefers_safetensors_over_pickles(tmp_path: Path) -> None:
    """A folder with both is read from the safe and mappable one."""
    write_safetensors(tmp_path / "model.safetensors", {"a": ("F32", [1], 4)})
    (tmp_path / "pytorch_model.bin").write_bytes(b"not looked at")
    assert find_weights(tmp_path).format == "safetensors"


def test_finds_a_pytorch_checkpoint(tmp_path: Path) -> None:
    """PyTorch's zip archives are accepted without being unpickled."""
    with zipfile.ZipFile(tmp_path / "pytorch_model.bin", "w") as archive:
        archive.writestr("archive/data.pkl", b"")
    weights = find_weights(tmp_path)
    assert weights.format == "bin"
    assert weights.tensors == {}


def test_names_a_folder_without_weights(tmp_path: Path) -> None:
    """The message says which names were looked for."""
    message = error_of(tmp_path)
    assert "model.safetensors" in message
    assert "pytorch_model.bin" in message


@pytest.mark.parametrize("num_bytes", [0, 5, 8, 40, -1])
def test_names_a_truncated_file(tmp_path: Path, num_bytes: int) -> None:
    """Cut anywhere, in the header or one byte before the end, a file is found out."""
    file = write_safetensors(tmp_path / "model.safetensors", {"a": ("F32", [8], 32)})
    content = file.read_bytes()
    file.write_bytes(content[:num_bytes])
    message = error_of(tmp_path)
    assert "model.safetensors" in message
    assert "copy or download it again" in message


def test_names_a_missing_shard(tmp_path: Path) -> None:
    """The missing file is named, and how many there should be."""
    write_shards(tmp_path)
    (tmp_path / "model-00002-of-00002.safetensors").unlink()
    message = error_of(tmp_path)
    assert "model-00002-of-00002.safetensors is missing" in message


def test_names_a_shard_of_another_version(tmp_path: Path) -> None:
    """A shard that does not hold what the index says is not loaded half."""
    write_shards(tmp_path)
    write_safetensors(tmp_path / "model-00002-of-00002.safetensors", {"other": ("F32", [2, 3], 24)})
    message = error_of(tmp_path)
    assert "model-00002-of-00002.safetensors" in message
    assert "'b'" in message


def test_refuses_a_shard_outside_of_the_folder(tmp_path: Path) -> None:
    """An index cannot make us read files elsewhere."""
    index = {"weight_map": {"a": "../../secret.safetensors"}}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    assert "outside" in error_of(tmp_path)


@pytest.mark.parametrize("content", ["{", "[]", "{}", '{"weight_map": {}}'])
def test_names_a_broken_index(tmp_path: Path, content: str) -> None:
    """No JSON, no object, no weight map."""
    (tmp_path / "model.safetensors.index.json").write_text(content)
    assert "model.safetensors.index.json" in error_of(tmp_path)


@pytest.mark.parametrize(
    "description",
    [
        {"dtype": "F32", "shape": [2], "data_offsets": [0, 4]},
        {"dtype": "F31", "shape": [1], "data_offsets": [0, 4]},
        {"dtype": "F32", "shape": [1], "data_offsets": [4, 0]},
        {"dtype": "F32", "shape": [1]},
        7,
    ],
)
def test_names_a_tensor_that_is_described_wrongly(tmp_path: Path, description: Any) -> None:
    """Sizes, types and offsets of the header must fit together."""
    raw = json.dumps({"a": description}).encode()
    content = len(raw).to_bytes(8, "little") + raw + bytes(8)
    (tmp_path / "model.safetensors").write_bytes(content)
    assert "tensor 'a'" in error_of(tmp_path)


def test_names_a_git_lfs_pointer(tmp_path: Path) -> None:
    """The usual result of a clone without LFS gets its own remedy."""
    pointer = "version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 1\n"
    (tmp_path / "model.safetensors").write_text(pointer)
    assert "git lfs pull" in error_of(tmp_path)


def test_names_a_header_that_is_no_json(tmp_path: Path) -> None:
    """Eight sensible bytes do not make a header."""
    content = (4).to_bytes(8, "little") + b"oops" + bytes(8)
    (tmp_path / "model.safetensors").write_bytes(content)
    assert "no valid JSON" in error_of(tmp_path)


def test_names_a_truncated_pytorch_checkpoint(tmp_path: Path) -> None:
    """A zip archive without its directory at the end was cut off."""
    file = tmp_path / "pytorch_model.bin"
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("archive/data.pkl", b"x" * 100)
    file.write_bytes(file.read_bytes()[:-30])
    assert "pytorch_model.bin is truncated" in error_of(tmp_path)
