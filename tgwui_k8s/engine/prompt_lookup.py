"""Guesses at what comes next, for speculative decoding without a second model.

Where the newest tokens stood in the text before, what followed them then is likely to follow
again: in summaries, edits of code, answers that quote. The engine computes such a draft together
with the newest token and takes what sampling confirms, so the text is the same with and without
(prompt lookup decoding, Saxena 2023).
"""

from __future__ import annotations

from collections.abc import Sequence

_NGRAM_SIZES = (3, 2)
"""How many of the newest tokens must have stood together before; the longer match is preferred."""


class PromptLookup:
    """The drafts of one sequence, over an index of its n-grams that grows with it.

    A draft that was right makes the next one longer, a wrong one makes it short, so text that does
    not repeat itself costs next to nothing.
    """

    __slots__ = ("_draft", "_index", "_max_tokens", "_num_indexed", "_num_right", "_stop")

    def __init__(self, max_tokens: int, stop: int) -> None:
        """At most `max_tokens` at a time, in a text that ends before position `stop`."""
        self._max_tokens = max_tokens
        self._stop = stop
        self._index: dict[tuple[int, ...], int] = {}
        """Where the token after the last n-gram of these tokens stands."""
        self._num_indexed = 0
        self._draft: list[int] = []
        self._num_right = max_tokens

    def draft(self, token_ids: Sequence[int], limit: int) -> list[int]:
        """What may follow `token_ids`: at most `limit` tokens, often none.

        The token after the draft still belongs to the text.
        """
        length = min(self._max_tokens, 2 * self._num_right + 1, self._stop - 1 - len(token_ids))
        begin = self._find(token_ids)
        draft: list[int] = []
        if begin is not None:
            for position in range(begin, begin + min(length, limit)):
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
        for stop in range(self._num_indexed + 1, len(token_ids)):
            for size in _NGRAM_SIZES:
                if size <= stop:
                    self._index[tuple(token_ids[stop - size : stop])] = stop
        self._num_indexed = max(self._num_indexed, len(token_ids) - 1)
        for size in _NGRAM_SIZES:
            begin = self._index.get(tuple(token_ids[-size:]))
            if begin is not None and size <= len(token_ids):
                return begin
        return None
