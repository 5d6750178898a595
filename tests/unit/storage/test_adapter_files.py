"""What an adapter's configuration may say of its scaling."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tgwui_k8s.errors import BrokenModelError, TgwuiError
from tgwui_k8s.storage.adapter_files import CONFIG_FILE, AdapterFiles
from tgwui_k8s.storage.weights import WeightFiles


def write_config(folder: Path, **fields: Any) -> Path:
    (folder / CONFIG_FILE).write_text(
        json.dumps({"peft_type": "LORA", "lora_alpha": 16, **fields}, allow_nan=True)
    )
    return folder


@pytest.mark.parametrize(
    "pattern",
    [
        {"*.q_proj": 16},
        {"q{99999999999}": 16},
        {"q_proj": None},
        {"q_proj": "16"},
        {"q_proj": True},
        {"q_proj": float("nan")},
        {"q_proj": 1 << 1024},
        ["q_proj"],
        "q_proj",
    ],
    ids=lambda pattern: str(pattern)[:30],
)
def test_an_alpha_pattern_that_is_none_is_refused_by_name(tmp_path: Path, pattern: Any) -> None:
    """Before a layer asks for its scaling, where nobody expects it to fail."""
    with pytest.raises(BrokenModelError, match="its alpha_pattern"):
        AdapterFiles.read(write_config(tmp_path, alpha_pattern=pattern))


@pytest.mark.parametrize("alpha", [None, "much", True, float("inf"), 1 << 1024])
def test_an_alpha_that_is_no_number_is_refused(tmp_path: Path, alpha: Any) -> None:
    """Neither what floats cannot say."""
    with pytest.raises(BrokenModelError, match="has no lora_alpha"):
        AdapterFiles.read(write_config(tmp_path, lora_alpha=alpha))


@pytest.mark.parametrize("pattern", [None, {}, {"q_proj": 8, r"layers\.1\.k_proj": 4.0}])
def test_other_patterns_pass(tmp_path: Path, pattern: Any) -> None:
    """The next thing to be missed are the weights."""
    with pytest.raises(TgwuiError, match="has no adapter_model"):
        AdapterFiles.read(write_config(tmp_path, alpha_pattern=pattern))


def test_the_first_pattern_that_fits_gives_the_scaling(tmp_path: Path) -> None:
    """At the end of a layer's name, as in PEFT; lora_alpha elsewhere."""
    config = {"lora_alpha": 16, "alpha_pattern": {"q_proj": 8, r"layers\.1\.k_proj": 4}}
    files = AdapterFiles(tmp_path, config, WeightFiles("safetensors", (), {}, 0), {})
    assert files.scaling("model.layers.0.self_attn.q_proj", 4) == 2.0
    assert files.scaling("model.layers.1.k_proj", 4) == 1.0
    assert files.scaling("model.layers.0.k_proj", 4) == 4.0
