"""The double computes what Transformers computes, and goes wrong where the library does."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from tests.helpers.neuron import NeuronHost
from tests.helpers.neuron_calls import Slots, continuous, make_model
from tgwui_k8s.demo.tiny import make_checkpoint

PROMPTS = ([5, 6, 7, 8, 9, 10, 11], [20, 21, 22], [30] * 40 + [31, 40])
NEW_TOKENS = 24


@pytest.fixture(scope="module", params=["llama", "mistral"])
def checkpoint(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A tiny model of either class, and what Transformers writes after each prompt."""
    path = make_checkpoint(tmp_path_factory.mktemp(request.param), request.param, eos_token_id=511)
    model = AutoModelForCausalLM.from_pretrained(path).eval()
    texts = [greedy(model, prompt) for prompt in PROMPTS]
    return request.param, path, texts


def greedy(model: Any, prompt: list[int]) -> list[int]:
    """Prompt and greedy continuation, by Transformers."""
    ids = torch.tensor([prompt])
    output = model.generate(
        ids, attention_mask=torch.ones_like(ids), max_new_tokens=NEW_TOKENS, do_sample=False
    )
    return output[0].tolist()


@pytest.mark.usefixtures("neuron")
def test_slots_that_come_and_go_write_what_transformers_writes(
    checkpoint: tuple[str, Path, list[list[int]]],
) -> None:
    """Prompts join a running continuous batch one by one, and none disturbs another."""
    architecture, path, expected = checkpoint
    model = make_model(path, architecture, **continuous(4, n_positions=[128]))
    model.to_neuron()
    slots = Slots(model)

    for slot, prompt in zip((2, 0, 3), PROMPTS, strict=True):
        slots.prefill({slot: prompt})
        slots.decode()
        slots.decode()
    while len(slots.texts[3]) < len(expected[2]):
        slots.decode()

    for slot, text in zip((2, 0, 3), expected, strict=True):
        assert slots.texts[slot][: len(text)] == text


@pytest.mark.usefixtures("neuron")
def test_sample_with_top_k_1_writes_what_transformers_writes(
    checkpoint: tuple[str, Path, list[list[int]]],
) -> None:
    """Invariant 12: greedy is `top_k=1`, also where the prompt exceeds the context bucket."""
    architecture, path, expected = checkpoint
    model = make_model(path, architecture, n_positions=128, context_length_estimate=16)
    model.to_neuron()

    for text in expected:
        ids = torch.tensor([text[:-NEW_TOKENS]])
        assert model.sample(ids, len(text), top_k=1).tolist() == [text]


def test_a_slot_left_out_of_a_decode_loses_its_first_position(
    checkpoint: tuple[str, Path, list[list[int]]], neuron: NeuronHost
) -> None:
    """Invariant 19: its text changes, and the double writes that down; a new prefill heals it."""
    architecture, path, expected = checkpoint
    model = make_model(path, architecture, **continuous(2, n_positions=[128]))
    model.to_neuron()
    slots = Slots(model)
    slots.prefill({0: PROMPTS[0]})
    slots.prefill({1: PROMPTS[1]})

    slots.decode([1])
    assert neuron.violations() == []
    while len(slots.texts[0]) < len(expected[0]):
        slots.decode()

    assert slots.texts[0] != expected[0]
    assert "slot 0 is decoded after it was left out" in neuron.accept_violation("left out")[0]
    seen = neuron.count("violation")
    slots.prefill({0: PROMPTS[0]})
    while len(slots.texts[0]) < len(expected[0]):
        slots.decode([0])
    assert slots.texts[0] == expected[0]
    assert neuron.count("violation") == seen


@pytest.mark.usefixtures("neuron")
def test_scaled_rotary_embeddings_are_llama_3s(tmp_path: Path) -> None:
    """Frequencies are scaled as Transformers scales them."""
    scaling = {
        "rope_type": "llama3",
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 64,
    }
    path = make_checkpoint(
        tmp_path, "llama", eos_token_id=511, rope_theta=5000.0, rope_scaling=scaling
    )
    expected = greedy(AutoModelForCausalLM.from_pretrained(path).eval(), PROMPTS[2])
    model = make_model(path, n_positions=128)
    model.to_neuron()

    text = model.sample(torch.tensor([PROMPTS[2]]), len(expected), top_k=1)

    assert text[0].tolist() == expected
