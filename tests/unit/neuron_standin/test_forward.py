"""Invariants 15, 19 and 20: padding, and `forward()` in static and continuous batches."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.helpers.neuron import NeuronHost
from tests.helpers.neuron_calls import Slots, continuous, make_model, prompt_call, token_call

PROMPT = [5, 6, 7, 8]
OTHER = [40, 41]
PAD = 2
NO_EOS = -1


@pytest.fixture
def single(llama: Path, neuron: NeuronHost) -> Any:
    """One row."""
    del neuron
    model = make_model(llama)
    model.to_neuron()
    return model


@pytest.fixture
def slots(llama: Path, neuron: NeuronHost) -> Any:
    """Three slots of 64 positions, prompts of up to 32."""
    del neuron
    model = make_model(llama, **continuous(3))
    model.to_neuron()
    return model


def alone(model: Any, prompt: list[int], length: int) -> list[int]:
    """The text of a prompt in a batch of its own."""
    text = model.sample(torch.tensor([prompt]), length, top_k=1, eos_token_override=NO_EOS)
    return text[0].tolist()


def test_left_padding_needs_start_ids(llama: Path, single: Any, neuron: NeuronHost) -> None:
    """Invariant 15: with them rows read as alone; without them the pads are attended."""
    pair = make_model(llama, batch_size=2)
    pair.to_neuron()
    ids = torch.tensor([PROMPT, [PAD, PAD, *OTHER]])
    arguments = {"sequence_length": 24, "top_k": 1, "eos_token_override": NO_EOS}

    text = pair.sample(ids, start_ids=torch.tensor([0, 2]), **arguments)
    assert text[0].tolist() == alone(single, PROMPT, 24)
    assert text[1, 2:].tolist() == alone(single, OTHER, 22)
    assert neuron.violations() == []

    wrong = pair.sample(ids, **arguments)
    assert wrong[0].tolist() == alone(single, PROMPT, 24)
    assert wrong[1, 2:].tolist() != alone(single, OTHER, 22)
    assert neuron.accept_violation("without start_ids") == [
        "sample() of several rows without start_ids attends their padding"
    ]


def test_forward_needs_start_ids_and_cache_ids_too(llama: Path, neuron: NeuronHost) -> None:
    """Invariant 15: they are the same for a row from its prompt to its end."""
    pair = make_model(llama, batch_size=2)
    pair.to_neuron()
    ids, starts = torch.tensor([PROMPT, [PAD, PAD, *OTHER]]), torch.tensor([0, 2])
    pair.forward(ids, start_ids=starts)
    pair.forward(ids[:, :1], cache_ids=torch.tensor([4]), start_ids=starts)
    assert neuron.violations() == []

    pair.forward(ids)
    pair.forward(ids[:, :1], cache_ids=torch.tensor([4]), start_ids=starts)
    pair.forward(ids[:, :1], start_ids=starts)

    assert neuron.accept_violation("forward()") == [
        "forward() of several rows without start_ids attends their padding",
        "forward() of one token without cache_ids writes position 0",
    ]
    assert neuron.accept_violation("start_ids became") == [
        "start_ids became [0, 2] and were [0, 0] for the prompt"
    ]


def test_right_padding_needs_cache_ids(llama: Path, single: Any) -> None:
    """Invariant 15: two-dimensional ones; new tokens stand after the padded width."""
    from transformers_neuronx import NeuronConfig

    right = make_model(llama, batch_size=2, neuron_config=NeuronConfig(padding_side="right"))
    right.to_neuron()
    ids = torch.tensor([PROMPT, [*OTHER, PAD, PAD]])
    arguments = {"sequence_length": 12, "top_k": 1, "eos_token_override": NO_EOS}

    text = right.sample(
        ids,
        cache_ids=torch.tensor([[0, 1, 2, 3], [0, 1, 0, 0]]),
        start_ids=torch.arange(2),
        **arguments,
    )

    assert text[0].tolist() == alone(single, PROMPT, 12)
    assert text[1, 4:].tolist() == alone(single, OTHER, 10)[2:]
    with pytest.raises(AttributeError):
        right.sample(ids, **arguments)


def test_forward_gives_logits_of_the_last_position(single: Any, slots: Any) -> None:
    """Invariant 20: float32, (batch, vocabulary), in the caller's order."""
    static = single.forward(torch.tensor([PROMPT]))
    assert (static.dtype, static.shape) == (torch.float32, (1, 512))

    logits = slots.forward(**prompt_call({2: PROMPT, 0: OTHER}))
    assert (logits.dtype, logits.shape) == (torch.float32, (2, 512))
    assert torch.allclose(logits[0], static[0], atol=1e-5)

    decoded = slots.forward(**token_call({0: [*OTHER, 9], 2: [*PROMPT, 9]}))
    after = single.forward(torch.tensor([[9]]), cache_ids=torch.tensor([len(PROMPT)]))
    assert torch.allclose(decoded[1], after[0], atol=1e-5)


def test_logits_are_cast_as_configured(llama: Path, single: Any) -> None:
    """Invariant 20: `cast_logits_dtype`."""
    from transformers_neuronx import NeuronConfig

    model = make_model(llama, neuron_config=NeuronConfig(cast_logits_dtype="bfloat16"))
    model.to_neuron()

    assert model.forward(torch.tensor([PROMPT])).dtype == torch.bfloat16
    assert single.forward(torch.tensor([PROMPT])).dtype == torch.float32


@pytest.mark.parametrize("missing", ["cache_ids", "start_ids"])
def test_slots_need_both_kinds_of_ids(slots: Any, missing: str) -> None:
    """Invariant 19: AttributeError without either."""
    arguments = prompt_call({0: PROMPT})
    arguments.pop(missing)

    with pytest.raises(AttributeError, match="'NoneType' object has no attribute"):
        slots.forward(**arguments)


def test_slots_need_cache_ids_of_two_dimensions(slots: Any) -> None:
    """Invariant 19: AssertionError for a vector."""
    arguments = prompt_call({0: PROMPT})

    with pytest.raises(AssertionError):
        slots.forward(**{**arguments, "cache_ids": torch.arange(4)})


def test_a_prompt_must_fit_the_context_bucket(slots: Any) -> None:
    """Invariant 19: one token more is refused with the library's words."""
    slots.forward(**prompt_call({0: list(range(3, 35))}))

    with pytest.raises(AssertionError, match="invalid input prompt length"):
        slots.forward(**prompt_call({0: list(range(3, 36))}))


def test_a_slot_that_does_not_exist_is_an_error(slots: Any) -> None:
    """Invariant 19: RuntimeError from the scatter."""
    with pytest.raises(RuntimeError, match="out of bounds"):
        slots.forward(**token_call({3: PROMPT}))
    with pytest.raises(RuntimeError, match="out of bounds"):
        slots.forward(**prompt_call({3: PROMPT}))


def test_a_position_beyond_the_cache_is_a_stop_iteration(slots: Any) -> None:
    """Invariant 19: `position < n_positions`."""
    texts = Slots(slots)
    texts.prefill({0: PROMPT})
    while len(texts.texts[0]) <= 64:
        texts.decode()

    with pytest.raises(StopIteration):
        texts.decode()


@pytest.mark.parametrize("position", [3, 5])
def test_positions_grow_by_one(slots: Any, neuron: NeuronHost, position: int) -> None:
    """Invariant 19: a repeated or skipped position is written down."""
    slots.forward(**prompt_call({1: PROMPT}))

    slots.forward(
        torch.tensor([[9]]), cache_ids=torch.tensor([[position]]), start_ids=torch.tensor([1])
    )

    assert neuron.accept_violation("writes position") == [
        f"slot 1 writes position {position} but holds 4 tokens"
    ]


def test_a_slot_is_prefilled_before_it_is_decoded(slots: Any, neuron: NeuronHost) -> None:
    """Invariant 19: also when another sequence has used it before."""
    slots.forward(**token_call({1: PROMPT}))

    assert neuron.accept_violation("writes position") == [
        "slot 1 writes position 3 but holds 0 tokens"
    ]


def test_one_token_is_a_decode_that_others_must_join(
    slots: Any, single: Any, neuron: NeuronHost
) -> None:
    """Invariant 19: a prompt of one token has no context graph, and spoils who is left out."""
    texts = Slots(slots)
    texts.prefill({0: PROMPT})
    joined = slots.forward(**token_call({0: texts.texts[0], 1: [OTHER[0]]}))
    texts.texts[0].append(int(joined[0].argmax()))
    texts.texts[1] = [OTHER[0], int(joined[1].argmax())]
    for _ in range(10):
        texts.decode()
    assert texts.texts[0] == alone(single, PROMPT, 16)
    assert texts.texts[1] == alone(single, OTHER[:1], 12)
    assert neuron.violations() == []

    slots.forward(**token_call({2: [9]}))
    texts.decode([0, 1])
    assert len(neuron.accept_violation("left out")) == 2


def test_a_prompt_of_one_token_may_be_padded(slots: Any, single: Any) -> None:
    """Invariant 19: padded to two it is a prefill, and touches its own slot alone."""
    texts = Slots(slots)
    texts.prefill({0: PROMPT})
    logits = slots.forward(
        torch.tensor([[OTHER[0], 0]]),
        cache_ids=torch.tensor([[0, 0]]),
        start_ids=torch.tensor([1]),
    )
    texts.texts[1] = [OTHER[0], int(logits.argmax())]
    for _ in range(10):
        texts.decode()

    assert texts.texts[1] == alone(single, OTHER[:1], 12)
    assert texts.texts[0] == alone(single, PROMPT, 15)


def test_wrong_cache_ids_of_a_prompt_are_written_down(slots: Any, neuron: NeuronHost) -> None:
    """Invariant 19: 0..length-1, then 0 for the padding; another first one means speculation."""
    slots.forward(
        torch.tensor([PROMPT]), cache_ids=torch.tensor([[0, 1, 3, 2]]), start_ids=torch.tensor([0])
    )
    assert len(neuron.accept_violation("0..length-1 then 0")) == 1

    with pytest.raises(KeyError):
        slots.forward(
            torch.tensor([PROMPT]),
            cache_ids=torch.tensor([[4, 5, 6, 7]]),
            start_ids=torch.tensor([0]),
        )
    assert len(neuron.accept_violation("speculation")) == 1


def test_a_slot_occurs_once_in_a_call(slots: Any, neuron: NeuronHost) -> None:
    """Invariant 19: the last one of two would win in silence."""
    slots.forward(**prompt_call({0: PROMPT}))
    slots.forward(
        torch.tensor([[9], [10]]),
        cache_ids=torch.tensor([[4], [4]]),
        start_ids=torch.tensor([0, 0]),
    )

    assert len(neuron.accept_violation("occurs twice in one decode")) == 1
    neuron.accept_violation("writes position")


def test_reset_forgets_every_slot(slots: Any, neuron: NeuronHost) -> None:
    """After it nothing is live, and nothing can be decoded."""
    texts = Slots(slots)
    texts.prefill({0: PROMPT})
    slots.reset()
    texts.prefill({1: OTHER})
    texts.decode([1])
    assert neuron.violations() == []

    texts.decode([0])
    assert neuron.accept_violation("slot 0") == ["slot 0 writes position 4 but holds 0 tokens"]


def test_sample_with_slots_wants_all_of_them(slots: Any, single: Any) -> None:
    """Continuous batching does not make `sample()` accept fewer rows."""
    ids = torch.tensor([PROMPT, PROMPT, [*OTHER, 0, 0]])
    cache_ids = torch.tensor([[0, 1, 2, 3], [0, 1, 2, 3], [0, 1, 0, 0]])

    text = slots.sample(ids, 12, cache_ids, torch.arange(3), top_k=1, eos_token_override=NO_EOS)

    assert text[0].tolist() == text[1].tolist() == alone(single, PROMPT, 12)
    assert text[2, 4:].tolist() == alone(single, OTHER, 10)[2:]
    with pytest.raises(ValueError, match=re.escape("is one of the following [3]")):
        slots.sample(ids[:1], 12, cache_ids[:1], torch.arange(1))


def test_unknown_keyword_arguments_of_forward_are_written_down(
    slots: Any, neuron: NeuronHost
) -> None:
    """Invariant 18: `seq_ids` is another library's name for `start_ids`."""
    slots.forward(**prompt_call({0: PROMPT}), seq_ids=torch.tensor([0]))

    assert neuron.accept_violation("forward()") == [
        "forward(): keyword argument 'seq_ids' has no effect"
    ]


def test_quantized_weights_change_the_logits_a_little(llama: Path, single: Any) -> None:
    """Eight bits are close to float32, and take a quarter of its memory."""
    from transformers_neuronx import NeuronConfig, QuantizationConfig

    config = NeuronConfig(quant=QuantizationConfig(quant_dtype="s8", dequant_dtype="f32"))
    model = make_model(llama, neuron_config=config)
    model.to_neuron()
    exact = single.forward(torch.tensor([PROMPT]))
    coarse = model.forward(torch.tensor([PROMPT]))

    assert 0 < (coarse - exact).abs().max() < 0.1 * exact.abs().max()
