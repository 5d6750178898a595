"""End-of-sequence tokens and fingerprints of model folders."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tgwui_k8s.demo.tiny_tokenizer import EOS_TOKEN_ID, write_tokenizer
from tgwui_k8s.errors import BrokenModelError
from tgwui_k8s.storage.identity import eos_token_ids, fingerprint


def write(folder: Path, **files: Any) -> Path:
    """Write `name={...}` as name.json."""
    for name, content in files.items():
        (folder / f"{name}.json").write_text(json.dumps(content))
    return folder


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        ({"generation_config": {"eos_token_id": 7}, "config": {"eos_token_id": 5}}, (7,)),
        ({"generation_config": {"eos_token_id": [7, 8]}}, (7, 8)),
        ({"generation_config": {}, "config": {"eos_token_id": 5}}, (5,)),
        ({"config": {"text_config": {"eos_token_id": 5}}}, (5,)),
        ({"config": {"eos_token_id": None}}, ()),
        ({}, ()),
    ],
)
def test_end_tokens_come_from_the_generation_config_first(
    tmp_path: Path, files: dict[str, Any], expected: tuple[int, ...]
) -> None:
    """An int or a list; config.json where there is nothing else, nested or not."""
    assert eos_token_ids(write(tmp_path, **files)) == expected


@pytest.mark.parametrize("eos_token", ["<|end|>", {"content": "<|end|>"}])
def test_the_tokenizers_own_end_token_counts_too(tmp_path: Path, eos_token: Any) -> None:
    """By the ids of tokenizer_config.json, without a second mention."""
    tokenizer_config = {
        "eos_token": eos_token,
        "added_tokens_decoder": {"7": {"content": "<s>"}, "9": {"content": "<|end|>"}},
    }
    write(tmp_path, config={"eos_token_id": 5}, tokenizer_config=tokenizer_config)
    assert eos_token_ids(tmp_path) == (5, 9)


def test_the_id_of_the_end_token_may_stand_in_the_tokenizer(tmp_path: Path) -> None:
    """Newer folders list added tokens in tokenizer.json only."""
    write_tokenizer(tmp_path)
    assert eos_token_ids(tmp_path) == (EOS_TOKEN_ID,)


def test_a_broken_tokenizer_is_named(tmp_path: Path) -> None:
    """Instead of answers that never end."""
    write(tmp_path, tokenizer_config={"eos_token": "</s>"})
    (tmp_path / "tokenizer.json").write_text('{"added_tokens": [{"id": 1,')
    with pytest.raises(BrokenModelError, match=r"tokenizer\.json"):
        eos_token_ids(tmp_path)


def test_the_fingerprint_names_weights_configuration_and_numerics(tmp_path: Path) -> None:
    """Equal inputs give equal names; any change, deep in a file too, gives another."""
    file = tmp_path / "model.safetensors"
    content = bytearray(4 << 20)
    file.write_bytes(content)
    name = fingerprint([file], {"a": 1}, ["float32"])
    assert name == fingerprint([file], {"a": 1}, ["float32"])
    assert name != fingerprint([file], {"a": 2}, ["float32"])
    assert name != fingerprint([file], {"a": 1}, ["bfloat16"])
    content[-(1 << 20) : -(1 << 19)] = b"\1" * (1 << 19)
    file.write_bytes(content)
    assert name != fingerprint([file], {"a": 1}, ["float32"])


def test_a_weight_file_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    """Not a traceback."""
    with pytest.raises(BrokenModelError, match=r"gone\.safetensors"):
        fingerprint([tmp_path / "gone.safetensors"], {}, [])
