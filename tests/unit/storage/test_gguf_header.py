"""Reading the few facts of a GGUF header that a list of models shows."""

from __future__ import annotations

import struct
from contextlib import suppress
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.helpers.gguf_bytes import gguf_bytes
from tgwui_k8s.errors import BrokenModelError
from tgwui_k8s.storage.gguf_header import GGUFHeader, read_gguf_header

METADATA = {
    "general.name": "a model",
    "general.architecture": "llama",
    "tokenizer.ggml.tokens": ["a", "b", "c"],
    "tokenizer.ggml.token_type": [1, 2, 3],
    "tokenizer.ggml.add_bos_token": True,
    "llama.rope.freq_base": 10000.0,
    "llama.context_length": 8192,
    "general.file_type": 15,
}


def write(folder: Path, content: bytes) -> Path:
    path = folder / "model.gguf"
    path.write_bytes(content)
    return path


@pytest.mark.parametrize("version", [2, 3])
def test_reads_architecture_context_and_quantization(tmp_path: Path, version: int) -> None:
    """Wanted keys are found behind arrays and values of other types."""
    path = write(tmp_path, gguf_bytes(METADATA, version=version))

    assert GGUFHeader("llama", 8192, "Q4_K_M") == read_gguf_header(path)


def test_absent_keys_are_none(tmp_path: Path) -> None:
    """A header that says nothing is not an error."""
    path = write(tmp_path, gguf_bytes({"general.name": "x"}))

    assert GGUFHeader(None, None, None) == read_gguf_header(path)


def test_stops_before_the_vocabulary(tmp_path: Path) -> None:
    """What follows the wanted keys is not read: it may be cut off without harm."""
    whole = gguf_bytes(
        {
            "general.architecture": "llama",
            "llama.context_length": 1,
            "general.file_type": 1,
            "tokenizer.ggml.tokens": ["x"] * 100,
        }
    )
    path = write(tmp_path, whole[:-200])

    assert GGUFHeader("llama", 1, "F16") == read_gguf_header(path)


def test_unknown_file_type_is_none(tmp_path: Path) -> None:
    """A quantization of the future has no name here."""
    path = write(tmp_path, gguf_bytes({"general.architecture": "x", "general.file_type": 999}))

    assert read_gguf_header(path).file_type is None


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "does not begin with 'GGUF'"),
        (b"version https://git-lfs.github.com/spec/v1\n", "does not begin with 'GGUF'"),
        (b"GGUF", "damaged or truncated"),
        (b"GGUF" + struct.pack("<IQQ", 1, 0, 0), "version 1"),
        (b"GGUF" + struct.pack("<IQQ", 3, 0, 2**40), "only 2 and 3"),
        (gguf_bytes(METADATA)[:60], "damaged or truncated"),
        (b"GGUF" + struct.pack("<IQQQ", 3, 0, 1, 2**60), "damaged or truncated"),
        (b"GGUF" + struct.pack("<IQQQ", 3, 0, 1, 1) + b"k" + struct.pack("<I", 77), "damaged"),
    ],
)
def test_foreign_or_damaged_file_is_named(tmp_path: Path, content: bytes, words: str) -> None:
    """Whatever is wrong with the file, the error names it and nothing else is raised."""
    path = write(tmp_path, content)

    with pytest.raises(BrokenModelError, match=words) as caught:
        read_gguf_header(path)
    assert str(path) in str(caught.value)


def test_missing_file_is_named(tmp_path: Path) -> None:
    """A file that is gone is the same kind of error."""
    with pytest.raises(BrokenModelError, match="No such file"):
        read_gguf_header(tmp_path / "gone.gguf")


@given(noise=st.binary(max_size=200), cut=st.integers(0, 300))
def test_noise_never_raises_anything_else(
    tmp_path_factory: pytest.TempPathFactory, noise: bytes, cut: int
) -> None:
    """A header with noise in its middle is read, or refused as broken."""
    content = gguf_bytes(METADATA)
    path = write(tmp_path_factory.mktemp("noise"), content[:cut] + noise + content[cut:])

    with suppress(BrokenModelError):
        assert isinstance(read_gguf_header(path), GGUFHeader)
