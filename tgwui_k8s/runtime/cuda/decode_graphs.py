"""Decode steps recorded once per batch size and replayed: no Python, one launch for all kernels.

A recorded step reads its numbers from memory that never moves, so a replay is: plan the batch,
copy its numbers there, start. Batches are padded to the next size on the ladder; a padded row is
token 0 at position 0, written nowhere, which looks at nothing.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from typing import Protocol

import torch

from tgwui_k8s.contract import Batch
from tgwui_k8s.runtime.memory import StepSize
from tgwui_k8s.runtime.model_step import ModelStep

logger = logging.getLogger(__name__)

GRAPH_BYTES = 24 << 20
"""What the driver keeps of one recorded step, and what its kernels leave unused: an upper estimate
for some dozens of layers."""

Compute = Callable[[], torch.Tensor]
Record = Callable[[Compute], Compute]
"""Takes what computes over fixed memory; what it returns computes the same again, into one tensor
that stays where it is."""


class FixedSteps(Protocol):
    """A backend whose decode steps can lie in fixed memory."""

    def reserve(self, num_rows: int, max_model_len: int) -> None:
        """Make the memory of fixed steps, for up to `num_rows` decodes."""
        ...

    def fixed_step(self, num_rows: int) -> ModelStep:
        """The step of `num_rows` decodes that reads this memory."""
        ...

    def fill(self, batch: Batch, num_rows: int) -> None:
        """Put a batch of up to `num_rows` decodes there, padded."""
        ...


def graph_sizes(max_num_seqs: int) -> tuple[int, ...]:
    """The ladder: 1, 2, 4, 8, then 8 apart up to 32, 16 apart up to 128, 32 apart to the end."""
    sizes = [1, 2, 4, *range(8, 32, 8), *range(32, 128, 16), *range(128, max_num_seqs, 32)]
    return (*(size for size in sizes if size < max_num_seqs), max_num_seqs)


def graphs_bytes(sizes: Sequence[int], step: StepSize) -> int:
    """Memory of steps of these sizes, beside their numbers: activations and logits in a pool of
    their own, and what the driver keeps."""
    per_row = step.bytes_per_token + step.vocab_size * step.element_bytes
    return len(sizes) * GRAPH_BYTES + max(sizes) * per_row


class DecodeGraphs:
    """The recorded steps of one model. Empty until `record`, and where recording failed."""

    def __init__(
        self, steps: FixedSteps, forward: Callable[[ModelStep], torch.Tensor], record: Record
    ) -> None:
        self._steps = steps
        self._forward = forward
        self._record = record
        self._recorded: dict[int, tuple[ModelStep, Compute]] = {}

    def record(self, sizes: Sequence[int], max_model_len: int) -> None:
        """Record steps of these sizes; warns, and leaves all steps as they were, if that fails."""
        self._recorded = {}
        try:
            self._steps.reserve(max(sizes), max_model_len)
            recorded = {}
            # The largest first: the others find room in what it leaves.
            for size in sorted(sizes, reverse=True):
                self._steps.fill(Batch([], 0), size)
                recorded[size] = self._record_one(size)
        except Exception as error:  # noqa: BLE001 - models do whatever cannot be recorded
            reason = str(error).strip().splitlines()[0][:200] if str(error).strip() else ""
            logger.warning(
                "decode steps run without CUDA graphs, which is slower: %s: %s",
                type(error).__name__,
                reason,
            )
            return
        self._recorded = dict(sorted(recorded.items()))

    def _record_one(self, size: int) -> tuple[ModelStep, Compute]:
        step = self._steps.fixed_step(size)
        return step, self._record(lambda: self._forward(step))

    def run(self, batch: Batch, previous: torch.Tensor | None) -> torch.Tensor | None:
        """Logits, a copy in float32, of a batch that was recorded; None for any other.

        `previous` as in `AsyncRunner.launch`.
        """
        size = self._size_for(batch)
        if size is None:
            return None
        step, replay = self._recorded[size]
        self._steps.fill(batch, size)
        if previous is not None:
            step.fill_in(previous)
        logits = replay()
        return logits[: len(batch.sequences)].to(torch.float32, copy=True)

    def _size_for(self, batch: Batch) -> int | None:
        """The smallest recorded size that holds the batch, if it is one of plain decodes."""
        number = len(batch.sequences)
        is_plain = batch.num_tokens == number and all(
            scheduled.num_logits == 1 and not scheduled.adapter for scheduled in batch.sequences
        )
        if not is_plain:
            return None
        return next((size for size in self._recorded if size >= number), None)
