"""Finds stop strings in text that arrives in pieces (Aho and Corasick's automaton).

The match that is complete first wins; of several complete at the same character, the longest.
That depends on the text alone, never on how tokens or chunks divide it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

START = 0
"""The state before any text."""


class StopMatch(NamedTuple):
    """A stop string that is complete."""

    text: str
    end: int
    """Index just behind it in the scanned text."""


class StopStrings:
    """Immutable; one automaton serves all choices of a request. A state is a plain integer.

    A state stands for the longest suffix of the text so far that begins a stop string. Building
    costs time and memory in proportion to the strings' total length, which the caller bounds.
    """

    def __init__(self, strings: Sequence[str]) -> None:
        """`strings`: none of them empty."""
        self._next: list[dict[str, int]] = [{}]
        self._fallback = [START]
        self._match: list[str | None] = [None]
        self._num_held = [0]
        for string in strings:
            self._match[self._insert(string)] = string
        self._link()
        self._first_characters = frozenset(self._next[START])

    def num_held(self, state: int) -> int:
        """How many of the last characters may still become a part of a stop string."""
        return self._num_held[state]

    def scan(self, state: int, text: str) -> tuple[int, StopMatch | None]:
        """Go on with `text`; give the new state and the first match. Stops scanning there."""
        if state == START and self._first_characters.isdisjoint(text):
            return START, None
        for index, character in enumerate(text):
            state = self._follow(state, character)
            match = self._match[state]
            if match is not None:
                return state, StopMatch(match, index + 1)
        return state, None

    def _follow(self, state: int, character: str) -> int:
        while character not in self._next[state]:
            if state == START:
                return START
            state = self._fallback[state]
        return self._next[state][character]

    def _insert(self, string: str) -> int:
        state = START
        for depth, character in enumerate(string, start=1):
            following = self._next[state].get(character)
            if following is None:
                following = len(self._next)
                self._next[state][character] = following
                self._next.append({})
                self._fallback.append(START)
                self._match.append(None)
                self._num_held.append(depth)
            state = following
        return state

    def _link(self) -> None:
        """Set fallbacks in breadth-first order: a state's own lies nearer to the start."""
        queue = list(self._next[START].values())
        for state in queue:
            fallback = self._fallback[state]
            if self._match[state] is None:
                self._match[state] = self._match[fallback]
            if not self._next[state]:
                self._num_held[state] = self._num_held[fallback]
            for character, following in self._next[state].items():
                self._fallback[following] = self._follow(fallback, character)
                queue.append(following)
