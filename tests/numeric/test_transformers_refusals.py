"""What the Transformers loader refuses, and what it says then."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import sentencepiece
import torch
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer

from tests.helpers.paged_driver import PagedDriver
from tests.helpers.transformers_models import (
    load_runner,
    random_tokens,
)
from tgwui_k8s.contract import ModelRunner
from tgwui_k8s.demo.tiny import make_checkpoint
from tgwui_k8s.errors import (
    BrokenModelError,
    ModelNotFoundError,
    StartupError,
    UnsupportedModelError,
)

PROMPT = random_tokens(40, seed=1)


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny Llama in one safetensors file."""
    return make_checkpoint(tmp_path_factory.mktemp("llama"), "llama")


def logits_of(runner: ModelRunner) -> np.ndarray:
    """Logits of the prompt."""
    return PagedDriver(runner).prefill(PROMPT)[1]


def edit_json(path: Path, **fields: Any) -> None:
    """Change some fields of a JSON file."""
    path.write_text(json.dumps({**json.loads(path.read_text()), **fields}))


@pytest.mark.parametrize("architecture", ["bloom", "falcon", "mpt", "gptj", "llama4_text"])
def test_models_without_our_attention_are_refused(tmp_path: Path, architecture: str) -> None:
    """With a word on what to use instead."""
    folder = make_checkpoint(tmp_path, architecture)
    with pytest.raises(UnsupportedModelError, match=r"llama\.cpp"):
        load_runner(folder)


@pytest.mark.parametrize(
    ("architecture", "reason"),
    [
        ("diffllama", "more than once"),
        ("doge", "attention_mask"),
        ("nemotron", "hand down"),
        ("phimoe", "how far each looks back"),
    ],
)
def test_what_a_model_asks_of_its_attention_is_never_ignored(
    tmp_path: Path, architecture: str, reason: str
) -> None:
    """Masks of its own, windows it does not tell, layers that run twice."""
    folder = make_checkpoint(tmp_path, architecture)
    with pytest.raises(UnsupportedModelError, match=reason):
        load_runner(folder)


def test_a_tokenizer_in_another_form_is_converted(tmp_path: Path) -> None:
    """A folder with only a SentencePiece model gives the API process a tokenizer.json."""
    folder = make_checkpoint(tmp_path, "llama")
    (folder / "tokenizer.json").unlink()
    words = [f"word{number} is number {number * 37}" for number in range(400)]
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(words),
        model_prefix=str(folder / "tokenizer"),
        vocab_size=200,
        model_type="bpe",
        byte_fallback=False,
        minloglevel=9,
    )
    edit_json(folder / "tokenizer_config.json", tokenizer_class="LlamaTokenizer")
    tokenizer_json = load_runner(folder).info.tokenizer_json
    assert tokenizer_json is not None
    tokenizer = Tokenizer.from_str(tokenizer_json.decode())
    reference = sentencepiece.SentencePieceProcessor(model_file=str(folder / "tokenizer.model"))
    text = "word12 is number 444"
    assert tokenizer.encode(text, add_special_tokens=False).ids == reference.encode(text)


def test_an_unknown_architecture_is_refused(tmp_path: Path) -> None:
    """One line that names it."""
    folder = make_checkpoint(tmp_path, "llama")
    edit_json(folder / "config.json", model_type="llama9000")
    with pytest.raises(UnsupportedModelError, match="llama9000") as caught:
        load_runner(folder)
    assert "\n" not in str(caught.value)


def test_code_in_the_folder_is_not_run_unasked(tmp_path: Path) -> None:
    """The flag is named; nothing was imported."""
    folder = make_checkpoint(tmp_path, "llama")
    edit_json(
        folder / "config.json",
        model_type="own",
        auto_map={"AutoConfig": "own.OwnConfig", "AutoModelForCausalLM": "own.OwnModel"},
    )
    (folder / "own.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')")
    with pytest.raises(UnsupportedModelError, match="--trust-remote-code"):
        load_runner(folder)
    assert not (tmp_path / "ran").exists()


OWN_CODE = """
from transformers import LlamaConfig, LlamaForCausalLM

class OwnConfig(LlamaConfig):
    model_type = "own"

class OwnModel(LlamaForCausalLM):
    config_class = OwnConfig
"""


def test_code_in_the_folder_runs_when_it_is_trusted(llama: Path, tmp_path: Path) -> None:
    """An architecture of the folder's own gives the logits of what it is derived from."""
    folder = make_checkpoint(tmp_path, "llama")
    edit_json(
        folder / "config.json",
        model_type="own",
        auto_map={"AutoConfig": "own.OwnConfig", "AutoModelForCausalLM": "own.OwnModel"},
    )
    (folder / "own.py").write_text(OWN_CODE)
    runner = load_runner(folder, trust_remote_code=True)
    assert runner.info.architecture == "OwnModel"
    np.testing.assert_array_equal(logits_of(runner), logits_of(load_runner(llama)))
    (folder / "own.py").write_text("raise RuntimeError('not today')")
    with pytest.raises(StartupError, match="not today"):
        load_runner(folder, trust_remote_code=True)


@pytest.mark.parametrize(
    "fields",
    [
        {"quantization_config": {"quant_method": "awq", "bits": 4}},
        {"layer_types": ["full_attention", "linear_attention"] * 2},
        {"model_type": "t5"},
        {"model_type": "vit"},
    ],
)
def test_formats_of_other_loaders_are_refused(tmp_path: Path, fields: dict[str, Any]) -> None:
    """Quantized, recurrent, encoder-decoder and picture models."""
    folder = make_checkpoint(tmp_path, "llama")
    edit_json(folder / "config.json", **fields)
    with pytest.raises(UnsupportedModelError):
        load_runner(folder)


def test_cuda_without_a_device_is_refused(llama: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Instead of a traceback from the driver."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(UnsupportedModelError, match="--device cpu"):
        load_runner(llama, device="cuda")


def test_an_unknown_option_is_refused(llama: Path) -> None:
    """By its name."""
    with pytest.raises(StartupError, match="'speed'"):
        load_runner(llama, options={"speed": "high"})


# ----------------------------------------------------------------------------- what is broken


def _drop_tensor(folder: Path) -> None:
    tensors = load_file(folder / "model.safetensors")
    del tensors["model.layers.2.mlp.up_proj.weight"]
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


def _truncate(folder: Path) -> None:
    file = folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-100])


@pytest.mark.parametrize(
    ("spoil", "named"),
    [
        (_truncate, "model.safetensors is truncated"),
        (_drop_tensor, "model.layers.2.mlp.up_proj.weight"),
        (lambda folder: (folder / "model.safetensors").unlink(), "no weights"),
        (lambda folder: (folder / "config.json").unlink(), "config.json"),
        (lambda folder: (folder / "config.json").write_text("{"), "config.json"),
        (lambda folder: (folder / "config.json").write_text("{}"), "config.json"),
        (lambda folder: edit_json(folder / "config.json", hidden_size=96), "config.json"),
        (lambda folder: edit_json(folder / "config.json", hidden_size="wide"), "config.json"),
        (lambda folder: edit_json(folder / "config.json", num_hidden_layers=5), "config.json"),
        (lambda folder: (folder / "tokenizer.json").unlink(), "tokenizer"),
        (lambda folder: (folder / "generation_config.json").write_text("["), "generation_config"),
    ],
)
def test_a_broken_model_is_one_error_that_names_the_file(
    tmp_path: Path, spoil: Callable[[Path], None], named: str
) -> None:
    """In one line, fit for a user."""
    folder = make_checkpoint(tmp_path, "llama")
    spoil(folder)
    with pytest.raises((BrokenModelError, ModelNotFoundError)) as caught:
        load_runner(folder)
    message = str(caught.value)
    assert named in message
    assert "\n" not in message
    assert len(message) < 1000


def test_a_pickle_cannot_run_code(tmp_path: Path) -> None:
    """Checkpoints in PyTorch's old format are read as data only."""
    folder = make_checkpoint(tmp_path / "model", "llama", weight_format="bin")
    target = tmp_path / "ran"

    class Evil:
        def __reduce__(self) -> Any:
            return (Path.touch, (target,))

    torch.save({"weight": Evil()}, folder / "pytorch_model.bin")
    with pytest.raises(BrokenModelError, match=r"pytorch_model\.bin"):
        load_runner(folder)
    assert not target.exists()
