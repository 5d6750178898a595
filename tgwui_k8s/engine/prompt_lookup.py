"""Guesses at what comes next, for speculative decoding without a second model.

Where the newest tokens stood in the text before, what followed them then is likely to follow
again: in summaries, edits of code, answers that quote. The engine computes such a draft together
with the newest token and takes what sampling confirms, so the text is the same with and without
(prompt lookup decoding, Saxena 2023).
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

_NGRAM_SIZES = (3, 2)
"""How many of the newest tokens must have stood together before; the longer match is preferred."""


_MAX_READ = 4096
"""Tokens that are read into an index at once: two milliseconds of the step loop's time."""


class NGramIndex:
    """Where a text went on after each n-gram that ends at a position from `begin` to `end`.

    Choices share that of their prompt, which is read once, and each has one of its own behind it.
    """

    __slots__ = ("_next", "_stops", "end")

    def __init__(self, begin: int = 0, end: int = sys.maxsize) -> None:
        """Ends are positions of the token behind the n-gram, `end` is none of them."""
        self.end = end
        self._next = begin
        self._stops: dict[tuple[int, ...], int] = {}

    def read(self, token_ids: Sequence[int]) -> None:
        """Read on in the text, to its last token but one or as far as is quickly done."""
        first = self._next
        last = max(first, min(self.end, len(token_ids), first + _MAX_READ))
        for size in _NGRAM_SIZES:
            begin = max(0, first - size)
            text = token_ids[begin : max(begin, last - 1)]
            ngrams = zip(*(text[skipped:] for skipped in range(size)), strict=False)
            self._stops.update(zip(ngrams, range(begin + size, last), strict=False))
        self._next = last

    def find(self, ngram: tuple[int, ...]) -> int | None:
        """Where the text went on after the last such n-gram."""
        return self._stops.get(ngram)


class PromptLookup:
    """The drafts of one sequence, over an index of its n-grams that grows with it.

    A draft that was right makes the next one longer, a wrong one makes it short, so text that does
    not repeat itself costs next to nothing.
    """

    __slots__ = ("_draft", "_max_tokens", "_num_right", "_own", "_prompt", "_stop")

    def __init__(self, max_tokens: int, stop: int, prompt: NGramIndex) -> None:
        """At most `max_tokens` at a time, in a text that ends before position `stop`."""
        self._max_tokens = max_tokens
        self._stop = stop
        self._prompt = prompt
        self._own = NGramIndex(prompt.end)
        self._draft: list[int] = []
        self._num_right = max_tokens

    def draft(self, token_ids: Sequence[int], limit: int) -> list[int]:
        """What may follow `token_ids`: at most `limit` tokens, often none.

        The token after the draft still belongs to the text.
        """
        num_left = self._stop - 1 - len(token_ids)
        length = min(self._max_tokens, 2 * self._num_right + 1, num_left, limit)
        begin = self._find(token_ids) if length > 0 else None
        draft: list[int] = []
        if begin is not None:
            for position in range(begin, begin + length):
                ahead = position - len(token_ids)  # a run that repeats itself goes on in the draft
                draft.append(draft[ahead] if ahead >= 0 else token_ids[position])
        self._draft = list(draft)
        if draft:
            self._num_right = 0
        return draft

    def confirm(self, token_id: int) -> bool:
        """True if the token that was sampled is the next of the draft; if not, drop the draft."""
        if not self._draft:
            return False
        if self._draft.pop(0) != token_id:
            self._draft = []
            return False
        self._num_right += 1
        return True

    def _find(self, token_ids: Sequence[int]) -> int | None:
        """Where the text goes on that last began like the newest tokens."""
        self._prompt.read(token_ids)
        self._own.read(token_ids)
        for size in _NGRAM_SIZES:
            if size <= len(token_ids):
                ngram = tuple(token_ids[-size:])
                begin = self._own.find(ngram) or self._prompt.find(ngram)
                if begin is not None:
                    return begin
        return None
