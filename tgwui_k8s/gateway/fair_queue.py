"""A queue with priorities, and fair shares between keys of one priority."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Mapping
from typing import Generic, TypeVar

Item = TypeVar("Item")


class FairQueue(Generic[Item]):
    """The lowest priority number goes first; among its keys the one with the fewest in flight.

    Items of one key and priority keep their order.
    """

    def __init__(self) -> None:
        self._levels: dict[float, dict[str, deque[Item]]] = {}
        self._num_items = 0

    def __len__(self) -> int:
        return self._num_items

    def push(self, item: Item, *, priority: float, key: str) -> None:
        """Put an item at the end of its key's line."""
        self._levels.setdefault(priority, {}).setdefault(key, deque()).append(item)
        self._num_items += 1

    def remove(self, item: Item, *, priority: float, key: str) -> None:
        """Take an item out; nothing happens where it has gone already."""
        lines = self._levels.get(priority, {})
        line = lines.get(key)
        if line is None or item not in line:
            return
        line.remove(item)
        self._num_items -= 1
        if not line:
            del lines[key]
        if not lines:
            del self._levels[priority]

    def heads(self, num_in_flight: Mapping[str, int]) -> Iterator[Item]:
        """Whose turn it is: the first of every key, in order. Do not change the queue meanwhile."""
        for priority in sorted(self._levels):
            lines = self._levels[priority]
            for key in sorted(lines, key=lambda key: num_in_flight.get(key, 0)):
                yield lines[key][0]
