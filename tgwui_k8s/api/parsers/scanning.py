"""Finding marks in text that comes in pieces, and the end of a JSON value in it."""

from __future__ import annotations

from collections.abc import Sequence


def num_undecided(text: str, marks: Sequence[str]) -> int:
    """Length of the longest end of `text` that may be the beginning of a mark."""
    longest = max((len(mark) for mark in marks), default=1) - 1
    for length in range(min(longest, len(text)), 0, -1):
        if any(mark.startswith(text[-length:]) for mark in marks):
            return length
    return 0


def find_first(text: str, marks: Sequence[str]) -> tuple[int, str] | None:
    """Where the first mark in `text` begins, and which one it is; the longest of several."""
    found = [(text.find(mark), -len(mark), mark) for mark in marks if mark in text]
    if not found:
        return None
    place, _, mark = min(found)
    return place, mark


class JsonScanner:
    """Finds the end of one JSON object or array, looking at brackets and strings alone."""

    def __init__(self) -> None:
        self._depth = 0
        self._in_string = False
        self._is_escaped = False
        self.is_done = False

    def feed(self, text: str) -> int:
        """How many characters of `text` belong to the value; fewer than all: it has ended."""
        for place, character in enumerate(text):
            if self._in_string:
                self._scan_string(character)
            elif character == '"':
                self._in_string = True
            elif character in "{[":
                self._depth += 1
            elif character in "}]":
                self._depth -= 1
                if self._depth <= 0:
                    self.is_done = True
                    return place + 1
        return len(text)

    def _scan_string(self, character: str) -> None:
        if self._is_escaped:
            self._is_escaped = False
        elif character == "\\":
            self._is_escaped = True
        elif character == '"':
            self._in_string = False
