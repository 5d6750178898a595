"""What is known of models before they are loaded."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.helpers.gguf_bytes import gguf_bytes
from tests.helpers.model_zoo import GGUF, LLAMA, PLAIN, ZOO, Layout, quantized
from tgwui_k8s.errors import ModelNotFoundError
from tgwui_k8s.storage.describe import ModelDescription, describe_model, describe_models


def test_describes_a_transformers_folder(tmp_path: Path) -> None:
    """Facts come from config.json, the size from all files."""
    path = Layout("llama", "", PLAIN).write(tmp_path)
    described = describe_model(path, "llama")

    assert described.loader == "Transformers"
    assert described.architecture == "LlamaForCausalLM"
    assert described.context_length == 4096
    assert described.dtype == "float16"
    assert described.quantization is None
    assert sum(file.stat().st_size for file in path.iterdir()) == described.size_bytes
    assert described.error is None


def test_describes_a_quantized_folder(tmp_path: Path) -> None:
    """Quantization shows the method and its bits, also where an older tool wrote it."""
    new = Layout("new", "", quantized("awq", bits=4)).write(tmp_path)
    old = Layout("old", "", {**PLAIN, "quant_config.json": {"w_bit": 4}}).write(tmp_path)

    assert describe_model(new, "new").quantization == "awq 4 bit"
    assert describe_model(old, "old").quantization == "awq 4 bit"


def test_describes_a_gguf_set_by_its_header(tmp_path: Path) -> None:
    """A set of parts is as large as all parts; facts come from the first one's header."""
    parts = {"m-00001-of-00002.gguf": GGUF, "m-00002-of-00002.gguf": b"x" * 100}
    path = Layout("m", "", {**parts, "README.md": b"long text"}).write(tmp_path)
    described = describe_model(path, "m")

    assert (
        described.loader,
        described.architecture,
        described.context_length,
        described.quantization,
    ) == ("llama.cpp", "llama", 2048, "Q4_K_M")
    assert len(GGUF) + 100 == described.size_bytes


def test_multimodal_models_are_described_by_their_text_part(tmp_path: Path) -> None:
    """Context length and dtype may be nested in `text_config`."""
    config = {"text_config": {"max_position_embeddings": 77, "dtype": "bfloat16"}}
    path = Layout("vl", "", {**PLAIN, "config.json": config}).write(tmp_path)
    described = describe_model(path, "vl")

    assert (described.context_length, described.dtype) == (77, "bfloat16")


def test_truncated_gguf_is_listed_with_its_error(tmp_path: Path) -> None:
    """A broken file is still recognised, sized, and says what is wrong."""
    path = tmp_path / "cut.gguf"
    path.write_bytes(gguf_bytes({"general.architecture": "llama"})[:30])
    described = describe_model(path, "cut.gguf")

    assert described.loader == "llama.cpp"
    assert described.size_bytes == 30
    assert "damaged or truncated" in (described.error or "")


def test_odd_values_are_left_out(tmp_path: Path) -> None:
    """A config.json with values of the wrong type is described as far as it makes sense."""
    config = {"architectures": [7], "max_position_embeddings": "many", "torch_dtype": 3}
    path = Layout("odd", "", {**PLAIN, "config.json": config}).write(tmp_path)
    described = describe_model(path, "odd")

    assert (
        described.architecture,
        described.context_length,
        described.dtype,
    ) == (None, None, None)
    assert described.loader == "Transformers"


def test_the_whole_zoo_is_listed(tmp_path: Path) -> None:
    """One broken model never hides the others; everything has a loader or an error."""
    for layout in ZOO:
        layout.write(tmp_path)
    described = {model.name: model for model in describe_models(tmp_path)}

    assert next(iter(described)) == "demo"
    for layout in ZOO:
        found = [model for name, model in described.items() if name.startswith(layout.name)]
        assert found, layout.name
        assert all(model.loader or model.error for model in found)


def test_folder_called_demo_is_shadowed(tmp_path: Path) -> None:
    """`demo` names the built-in model once, even if a folder has that name."""
    Layout("demo", "", {"config.json": LLAMA}).write(tmp_path)

    assert [model.name for model in describe_models(tmp_path)].count("demo") == 1


def test_missing_directory_is_an_error(tmp_path: Path) -> None:
    """There is nothing to describe without a directory."""
    with pytest.raises(ModelNotFoundError):
        describe_models(tmp_path / "missing")


def test_missing_model_is_described_by_its_error(tmp_path: Path) -> None:
    """A model that vanishes while listing is a row with an error."""
    described = describe_model(tmp_path / "gone", "gone")

    assert isinstance(described, ModelDescription)
    assert "does not exist" in (described.error or "")
