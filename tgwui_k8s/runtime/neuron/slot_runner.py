"""contract.ModelRunner over Neuron's slots: one block of the KV cache is one slot.

Prompts are computed one by one, each with the smallest context graph that holds it; a decode step
is one call for all. The library writes token 0 at position 0 of every slot that is left out of a
decode, so a sequence that misses one is lost. The scheduler puts all decodes into one step; this
runner checks that it did.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import numpy as np
import numpy.typing as npt

from tgwui_k8s.contract import (
    Batch,
    KVGroup,
    KVLayout,
    ModelInfo,
    Sampler,
    ScheduledSequence,
)
from tgwui_k8s.errors import IntegrityError
from tgwui_k8s.runtime.warm_up import compute_a_little

Logits = npt.NDArray[np.float32]


class SlotModel(Protocol):
    """A model whose KV cache is a number of slots."""

    def prefill(self, slot: int, token_ids: Sequence[int]) -> Logits:
        """Compute a whole prompt into a slot; logits [vocab] of its last token."""
        ...

    def decode(
        self, slots: Sequence[int], positions: Sequence[int], token_ids: Sequence[int]
    ) -> Logits:
        """One more token for each of the slots; logits [slots, vocab]."""
        ...

    def close(self) -> None:
        """Forget the model."""
        ...


class SlotRunner:
    """Steps a `SlotModel` with `num_slots` slots of `n_positions` positions."""

    def __init__(
        self, model: SlotModel, info: ModelInfo, *, num_slots: int, n_positions: int
    ) -> None:
        self.info = info
        self.layout = KVLayout(
            block_size=n_positions,
            groups=(KVGroup(num_blocks=num_slots),),
            prefix_caching=False,
            chunked_prefill=False,
            mixed_batches=False,
        )
        self.sampler: Sampler | None = None
        self._model = model
        self._next_positions: dict[int, int] = {}
        """Where the next token of every slot belongs that has missed no decode."""

    def execute(self, batch: Batch) -> Logits:
        """One call per prompt, and one for all decodes."""
        rows: dict[int, Logits] = {}
        decodes = [part for part in batch.sequences if part.start > 0]
        for part in batch.sequences:
            if part.start == 0:
                rows[id(part)] = self._prefill(part)
        rows |= self._decode(decodes) if decodes else {}
        found = [rows[id(part)] for part in batch.sequences]
        return np.concatenate(found) if found else np.zeros((0, self.info.vocab_size), np.float32)

    def warm_up(self) -> None:
        """A short prompt and one token."""
        compute_a_little(self)

    def close(self) -> None:
        """Forget the model; the cores are free when this process has exited."""
        self._model.close()

    def _prefill(self, part: ScheduledSequence) -> Logits:
        """Logits of the last tokens of a prompt.

        The graph gives those of the last one alone: where more are wanted, the prompt is computed
        once for each of its ends.
        """
        slot, length = part.block_tables[0][0], len(part.token_ids)
        wanted = max(1, part.num_logits)
        rows = [
            self._model.prefill(slot, part.token_ids[:end])
            for end in range(length - wanted + 1, length + 1)
        ]
        self._next_positions[slot] = length
        return np.stack(rows)[wanted - part.num_logits :]

    def _decode(self, parts: list[ScheduledSequence]) -> dict[int, Logits]:
        parts = sorted(parts, key=_slot)
        for part in parts:
            if len(part.token_ids) != 1 or self._next_positions.get(_slot(part)) != part.start:
                raise IntegrityError(
                    f"slot {_slot(part)} cannot go on at position {part.start}: it has missed a "
                    "decode, or was never computed"
                )
        self._next_positions = {_slot(part): part.start + 1 for part in parts}
        logits = self._model.decode(
            [_slot(part) for part in parts],
            [part.start for part in parts],
            [part.token_ids[0] for part in parts],
        )
        return {id(part): logits[row : row + part.num_logits] for row, part in enumerate(parts)}


def _slot(part: ScheduledSequence) -> int:
    return part.block_tables[0][0]
