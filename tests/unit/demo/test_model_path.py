"""The demo model lies in the package, complete and within its size."""

from __future__ import annotations

import json
import subprocess
import sys

from tgwui_k8s.demo import model_path

TEN_MEGABYTES = 10_000_000


def test_the_model_folder_is_complete() -> None:
    """Every file that a Hugging Face checkpoint of this kind consists of is there."""
    names = {file.name for file in model_path().iterdir()}
    assert names == {
        "config.json",
        "generation_config.json",
        "model.safetensors",
        "tokenizer.json",
        "tokenizer_config.json",
    }


def test_the_model_folder_takes_at_most_ten_megabytes() -> None:
    """The repository and the wheel stay small."""
    assert sum(file.stat().st_size for file in model_path().iterdir()) <= TEN_MEGABYTES


def test_the_config_names_architecture_and_type() -> None:
    """Loaders find out what they have to load from these fields."""
    config = json.loads((model_path() / "config.json").read_text(encoding="utf-8"))
    assert config["architectures"] == ["LlamaForCausalLM"]
    assert config["torch_dtype"] == "bfloat16"
    assert config["num_key_value_heads"] < config["num_attention_heads"]


def test_finding_the_model_imports_no_torch() -> None:
    """The API process asks for the path and must not pay for torch."""
    program = (
        "import sys, tgwui_k8s.demo; tgwui_k8s.demo.model_path(); print('torch' in sys.modules)"
    )
    answer = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    assert answer.stdout == "False\n"
