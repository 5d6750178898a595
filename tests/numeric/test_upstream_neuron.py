"""Upstream's Neuron loader on the stand-in: Transformers' text, its refusals, its settings."""

from __future__ import annotations

from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any, cast

import pytest
import torch
from transformers import AutoModelForCausalLM

from tests.helpers.neuron import NeuronHost
from tests.helpers.neuron_models import compile_model
from tgwui_k8s.demo.tiny import make_checkpoint
from tgwui_k8s.demo.tiny_tokenizer import write_tokenizer
from tgwui_k8s.registry import get_loader
from tgwui_k8s.upstream import neuron as hooks
from tgwui_k8s.upstream.neuron_model import CannotServe, NeuronModel

COMPILED = {"mode": "sample", "batch_size": 1, "n_positions": 64, "tp_degree": 2, "amp": "f32"}
PROMPT = [5, 6, 7, 8]


@pytest.fixture(name="shared")
def _shared(tmp_path: Path) -> ModuleType:
    args = SimpleNamespace(
        model_dir=str(tmp_path),
        trust_remote_code=False,
        neuron_artifacts=None,
        neuron_compile_on_start=False,
        context_buckets=None,
        tp_degree=None,
        amp=None,
        n_positions=None,
    )
    return cast("ModuleType", SimpleNamespace(args=args, settings={"truncation_length": 2048}))


@pytest.fixture(name="folder")
def _folder(tmp_path: Path, neuron: NeuronHost) -> Path:
    folder = make_checkpoint(tmp_path / "Tiny-neuron", "llama")
    write_tokenizer(folder)
    compile_model(get_loader("Neuron"), folder, **COMPILED)
    return folder


def load(shared: ModuleType) -> NeuronModel:
    model, tokenizer = hooks.loader(shared)("Tiny-neuron")
    assert tokenizer.encode("a")
    return model


def test_a_model_that_we_compiled_needs_no_flags(
    shared: ModuleType, folder: Path, neuron: NeuronHost
) -> None:
    """Its manifest says what its graphs are for; the text is Transformers', nothing is compiled."""
    num_compiled = neuron.count("compile")
    model = load(shared)
    hooks.set_truncation_length(shared, model)
    reference = AutoModelForCausalLM.from_pretrained(folder).float()
    ids = torch.tensor([PROMPT])
    options: dict[str, Any] = {"max_new_tokens": 8, "do_sample": False}

    text = model.generate(inputs=ids, **options)

    assert text.tolist() == reference.generate(ids, **options).tolist()
    assert neuron.count("compile") == num_compiled
    assert shared.settings["truncation_length"] == 64
    assert torch.allclose(
        model(input_ids=ids)["logits"][-1][-1], reference(ids).logits[0, -1], atol=1e-4
    )


def test_what_graphs_cannot_do_is_refused_by_name(shared: ModuleType, folder: Path) -> None:
    """As the client's mistake; a text that would not fit ends where the graphs end."""
    model = load(shared)
    ids = torch.tensor([PROMPT])

    for name, value in (("num_beams", 2), ("guidance_scale", 1.5), ("penalty_alpha", 0.5)):
        with pytest.raises(CannotServe, match=f"{name} is not available on Neuron"):
            model.generate(inputs=ids, **{name: value})
    with pytest.raises(CannotServe, match="the prompt has 64 tokens; 64 are compiled for"):
        model.generate(inputs=ids.repeat(1, 16))
    full = model.generate(inputs=ids, max_new_tokens=500, do_sample=False, eos_token_id=[])
    assert full.shape[1] == 64


def test_without_graphs_nothing_is_compiled_unasked(
    shared: ModuleType, tmp_path: Path, neuron: NeuronHost
) -> None:
    """The message has the command; graphs for continuous batching are no use either."""
    folder = make_checkpoint(tmp_path / "Tiny-neuron", "llama")
    write_tokenizer(folder)
    with pytest.raises(FileNotFoundError, match="tgwui-k8s neuron compile --neuron-mode sample"):
        load(shared)

    compile_model(get_loader("Neuron"), folder, **{**COMPILED, "mode": "continuous"})
    with pytest.raises(ValueError, match="batch continuously, which upstream cannot drive"):
        load(shared)


def test_a_name_or_a_layout_is_inferred(shared: ModuleType, tmp_path: Path) -> None:
    """Everything else is upstream's to infer."""
    for name in ("A-neuron", "B/neuron_artifacts", "C"):
        (tmp_path / name).mkdir(parents=True)
    infer = hooks.inferred(shared)(lambda name, *args, **kwargs: "Transformers")

    assert [infer(name, {}) for name in ("A-neuron", "B", "C")] == [
        *("Neuron", "Neuron"),
        "Transformers",
    ]
    assert hooks.named(lambda name: name)("NeuronX") == "Neuron"
