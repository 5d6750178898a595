"""Which decode steps are recorded and replayed, and what happens where they cannot be."""

from __future__ import annotations

import logging

import pytest
import torch

from tests.helpers.replays import Replays
from tgwui_k8s.contract import Batch, ScheduledSequence
from tgwui_k8s.runtime.cuda.decode_graphs import (
    GRAPH_BYTES,
    Compute,
    DecodeGraphs,
    graph_sizes,
    graphs_bytes,
)
from tgwui_k8s.runtime.memory import StepSize
from tgwui_k8s.runtime.model_step import ModelStep


class TokensOnly:
    """Steps whose numbers are their token ids."""

    def __init__(self) -> None:
        self.filled: list[int] = []
        self._memory = torch.empty(0, dtype=torch.int32)

    def reserve(self, num_rows: int, max_model_len: int) -> None:
        """See `FixedSteps`."""
        self._memory = torch.zeros(num_rows, dtype=torch.int32)

    def fixed_step(self, num_rows: int) -> ModelStep:
        """See `FixedSteps`."""
        tokens = self._memory[:num_rows]
        return ModelStep(tokens, tokens, tokens, attention=None)  # type: ignore[arg-type]

    def fill(self, batch: Batch, num_rows: int) -> None:
        """See `FixedSteps`."""
        self.filled.append(num_rows)
        self._memory[:num_rows] = 0
        for index, scheduled in enumerate(batch.sequences):
            self._memory[index] = scheduled.token_ids[0]


def doubled(step: ModelStep) -> torch.Tensor:
    """A model whose only logit is twice the token."""
    return step.token_ids[:, None].half() * 2


def decodes(*token_ids: int, **fields: object) -> Batch:
    """One token each."""
    sequences = [
        ScheduledSequence(row, 5, [token], ([0],), **{"num_logits": 1, **fields})  # type: ignore[arg-type]
        for row, token in enumerate(token_ids)
    ]
    return Batch(sequences, len(token_ids))


@pytest.fixture
def graphs() -> DecodeGraphs:
    """Recorded for 1, 2, 4 and 6."""
    graphs = DecodeGraphs(TokensOnly(), doubled, Replays())
    graphs.record((1, 2, 4, 6), max_model_len=32)
    return graphs


@pytest.mark.parametrize(
    ("max_num_seqs", "sizes"),
    [
        (1, (1,)),
        (3, (1, 2, 3)),
        (8, (1, 2, 4, 8)),
        (64, (1, 2, 4, 8, 16, 24, 32, 48, 64)),
        (70, (1, 2, 4, 8, 16, 24, 32, 48, 64, 70)),
        (200, (1, 2, 4, 8, 16, 24, 32, 48, 64, 80, 96, 112, 128, 160, 192, 200)),
    ],
)
def test_the_ladder(max_num_seqs: int, sizes: tuple[int, ...]) -> None:
    """Fine where a row more is felt, and always up to the largest batch."""
    assert graph_sizes(max_num_seqs) == sizes


@pytest.mark.parametrize("token_ids", [(7,), (7, 8, 9), (1, 2, 3, 4, 5)])
def test_the_smallest_step_that_holds_the_batch(token_ids: tuple[int, ...]) -> None:
    """Its rows come back in float32, and the padding does not."""
    steps = TokensOnly()
    graphs = DecodeGraphs(steps, doubled, Replays())
    graphs.record((1, 2, 4, 6), max_model_len=32)
    logits = graphs.run(decodes(*token_ids), None)
    assert logits is not None
    assert logits.tolist() == [[2.0 * token] for token in token_ids]
    assert logits.dtype == torch.float32
    assert steps.filled[-1] == {1: 1, 3: 4, 5: 6}[len(token_ids)]


def test_logits_stay_what_they_are_when_the_step_is_replayed(graphs: DecodeGraphs) -> None:
    """The engine may still sample from them."""
    logits = graphs.run(decodes(7), None)
    graphs.run(decodes(9), None)
    assert logits is not None
    assert logits.tolist() == [[14.0]]


def test_tokens_of_the_step_before(graphs: DecodeGraphs) -> None:
    """`~i` stands for the i-th of them."""
    logits = graphs.run(decodes(~1, 8, ~0), torch.tensor([20, 30]))
    assert logits is not None
    assert logits.tolist() == [[60.0], [16.0], [40.0]]


@pytest.mark.parametrize(
    "batch",
    [
        decodes(*range(7)),
        decodes(3, adapter="a"),
        decodes(3, num_logits=0),
        Batch([ScheduledSequence(0, 5, [1, 2], ([0],), 1)], 2),
    ],
    ids=["too many", "with an adapter", "without logits", "several tokens"],
)
def test_other_batches_are_not_replayed(graphs: DecodeGraphs, batch: Batch) -> None:
    """Nobody recorded them."""
    assert graphs.run(batch, None) is None


def test_what_cannot_be_recorded_runs_as_before(caplog: pytest.LogCaptureFixture) -> None:
    """One warning, and not a single step is replayed, not even those that were recorded."""
    record = Replays()

    def fail_at_two(compute: Compute) -> Compute:
        if len(compute()) == 2:
            raise RuntimeError("operation not permitted when stream is capturing\nsecond line")
        return record(compute)

    graphs = DecodeGraphs(TokensOnly(), doubled, fail_at_two)
    with caplog.at_level(logging.WARNING):
        graphs.record((1, 2, 4), max_model_len=32)
    assert record.num_recorded == 1
    assert graphs.run(decodes(1, 2, 3), None) is None
    (warning,) = caplog.messages
    assert "without CUDA graphs" in warning
    assert "not permitted when stream is capturing" in warning
    assert "second line" not in warning


def test_recorded_steps_are_counted_in_the_memory_plan() -> None:
    """What the driver keeps of each, and one set of activations and logits for all."""
    step = StepSize(
        num_tokens=8192,
        num_sequences=4,
        hidden_size=10,
        intermediate_size=20,
        vocab_size=1000,
        element_bytes=2,
    )
    per_row = (8 * 10 + 3 * 20 + 1000) * 2
    assert graphs_bytes((1, 2, 4), step) == 3 * GRAPH_BYTES + 4 * per_row
