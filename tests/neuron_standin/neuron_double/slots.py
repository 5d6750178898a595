"""What each cache row holds, and the mistakes that the library does not notice."""

from __future__ import annotations

from collections.abc import Sequence

from neuron_double.journal import violation


class Slots:
    """Lengths of the rows, and which of them a decode has spoiled."""

    def __init__(self, number: int) -> None:
        self.lengths = [0] * number
        self._spoiled: set[int] = set()

    def prefill(self, slot: int, length: int) -> None:
        """A row begins anew with its first `length` tokens."""
        self.lengths[slot] = length
        self._spoiled.discard(slot)

    def decode(self, slots: Sequence[int], positions: Sequence[int]) -> None:
        """Tokens are written to some rows; every other row loses its position 0."""
        if len(set(slots)) < len(slots):
            violation(f"a slot occurs twice in one decode: {list(slots)}")
        for slot, position in zip(slots, positions, strict=True):
            if position == 0:
                self.prefill(slot, 0)
            if slot in self._spoiled:
                violation(
                    f"slot {slot} is decoded after it was left out of a decode, "
                    "which overwrote its position 0"
                )
            if position != self.lengths[slot]:
                violation(
                    f"slot {slot} writes position {position} but holds {self.lengths[slot]} tokens"
                )
            self.lengths[slot] = position + 1
        for slot in set(range(len(self.lengths))) - set(slots):
            if self.lengths[slot]:
                self._spoiled.add(slot)
