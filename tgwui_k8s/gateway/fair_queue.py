"""A queue with priorities, and fair shares between keys of one priority."""

from __future__ import annotations

from collections import deque
from collections.abc import Hashable, Iterator, Mapping
from itertools import count
from typing import Generic, TypeVar

Item = TypeVar("Item")


class FairQueue(Generic[Item]):
    """The lowest priority number goes first; among its keys the one with the fewest in flight, and
    then who came first.

    Items of one key, priority and kind keep their order; where one cannot go, it holds up only its
    own kind.
    """

    def __init__(self) -> None:
        self._levels: dict[float, dict[tuple[str, Hashable], deque[tuple[int, Item]]]] = {}
        self._numbers = count()
        self._num_items = 0

    def __len__(self) -> int:
        return self._num_items

    def push(self, item: Item, *, priority: float, key: str, kind: Hashable = None) -> None:
        """Put an item at the end of its line."""
        line = self._levels.setdefault(priority, {}).setdefault((key, kind), deque())
        line.append((next(self._numbers), item))
        self._num_items += 1

    def remove(self, item: Item, *, priority: float, key: str, kind: Hashable = None) -> None:
        """Take an item out; nothing happens where it has gone already."""
        lines = self._levels.get(priority, {})
        line = lines.get((key, kind), deque())
        entry = next((entry for entry in line if entry[1] == item), None)
        if entry is None:
            return
        line.remove(entry)
        self._num_items -= 1
        if not line:
            del lines[key, kind]
        if not lines:
            del self._levels[priority]

    def heads(self, num_in_flight: Mapping[str, int]) -> Iterator[Item]:
        """Whose turn it is: the first of every line, in order. Do not change it meanwhile."""
        for priority in sorted(self._levels):
            heads = [
                (num_in_flight.get(key, 0), *line[0])
                for (key, _), line in self._levels[priority].items()
            ]
            for _, _, item in sorted(heads, key=lambda head: head[:2]):
                yield item
