"""Drives a ModelRunner over block tables without scheduler or engine."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from tgwui_k8s.contract import Batch, ModelRunner, ScheduledSequence

Logits = npt.NDArray[np.float32]


@dataclass
class DrivenSequence:
    """One sequence with its blocks. `num_computed` of its tokens are in the cache."""

    row: int
    block_tables: tuple[list[int], ...]
    num_computed: int = 0
    token_ids: list[int] = field(default_factory=list)


class PagedDriver:
    """Hands out blocks, from both ends in turn so that no table is in order, and runs batches."""

    def __init__(self, runner: ModelRunner) -> None:
        self.runner = runner
        self._rows = itertools.count()
        self._free = [_scrambled(group.num_blocks) for group in runner.layout.groups]

    def start(self) -> DrivenSequence:
        """A sequence without tokens."""
        return DrivenSequence(next(self._rows), tuple([] for _ in self._free))

    def run(
        self, *parts: tuple[DrivenSequence, Sequence[int]], num_logits: int | None = None
    ) -> list[Logits]:
        """Compute the next tokens of some sequences in one step.

        Returns logits [tokens, vocab_size] per part, for its last `num_logits` tokens (default:
        all).
        """
        scheduled = []
        for sequence, token_ids in parts:
            self._extend(sequence, sequence.num_computed + len(token_ids))
            wanted = len(token_ids) if num_logits is None else min(num_logits, len(token_ids))
            scheduled.append(
                ScheduledSequence(
                    sequence.row,
                    sequence.num_computed,
                    list(token_ids),
                    sequence.block_tables,
                    wanted,
                )
            )
        batch = Batch(scheduled, sum(len(part.token_ids) for part in scheduled))
        logits = to_numpy(self.runner.execute(batch))
        assert logits.shape == (batch.num_logits, self.runner.info.vocab_size)
        results = []
        for (sequence, token_ids), part in zip(parts, scheduled, strict=True):
            sequence.token_ids += token_ids
            sequence.num_computed += len(token_ids)
            self._forget(sequence)
            results.append(logits[: part.num_logits])
            logits = logits[part.num_logits :]
        return results

    def prefill(self, token_ids: Sequence[int]) -> tuple[DrivenSequence, Logits]:
        """A new sequence, computed whole."""
        sequence = self.start()
        return sequence, self.run((sequence, token_ids))[0]

    def generate(self, prompt: Sequence[int], num_tokens: int) -> list[int]:
        """Greedy tokens, one step each."""
        sequence, logits = self.prefill(prompt)
        tokens = [int(logits[-1].argmax())]
        while len(tokens) < num_tokens:
            (logits,) = self.run((sequence, tokens[-1:]))
            tokens.append(int(logits[-1].argmax()))
        return tokens

    def _extend(self, sequence: DrivenSequence, num_tokens: int) -> None:
        num_blocks = -(-num_tokens // self.runner.layout.block_size)
        for free, table in zip(self._free, sequence.block_tables, strict=True):
            while len(table) < num_blocks:
                table.append(free.pop())

    def _forget(self, sequence: DrivenSequence) -> None:
        """Take back the blocks that no later query of a windowed group sees."""
        layout = self.runner.layout
        for group, free, table in zip(
            layout.groups, self._free, sequence.block_tables, strict=True
        ):
            if group.window is not None:
                first = max(0, sequence.num_computed - group.window + 1) // layout.block_size
                for index in range(first):
                    if table[index] >= 0:
                        free.insert(0, table[index])
                        table[index] = -1


def to_numpy(logits: Any) -> Logits:
    """Logits of either kind of runner."""
    return np.asarray(logits.cpu() if hasattr(logits, "cpu") else logits, dtype=np.float32)


def _scrambled(num_blocks: int) -> list[int]:
    half = num_blocks // 2
    pairs = zip(range(half), range(num_blocks - 1, num_blocks - 1 - half, -1), strict=True)
    return [block for pair in pairs for block in pair]
