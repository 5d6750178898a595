"""What a sampler remembers of a sequence: token counts, and where its ending occurred before.

Both lie on the host and grow by one token a step; both can be built anew from the tokens.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

IntArray = NDArray[np.int64]


def distinct_tokens(token_ids: Collection[int], vocab_size: int) -> IntArray:
    """The token ids in ascending order, once each, without those that have no logit."""
    distinct = np.unique(np.fromiter(token_ids, np.int64, len(token_ids)))
    return distinct[(distinct >= 0) & (distinct < vocab_size)]


class TokenCounts:
    """How often each token occurs among the last `window` tokens of prompt and output.

    `window` 0 is all of them. Slot i of the arrays belongs to the token `token_ids[i]`; the
    counts of a token that has left the window are 0.
    """

    def __init__(self, prompt_token_ids: Sequence[int], window: int, vocab_size: int) -> None:
        self._prompt = prompt_token_ids
        self._window = window
        self._vocab_size = vocab_size
        self.num_outputs = 0
        first = max(0, len(prompt_token_ids) - window) if window else 0
        recent = np.asarray(prompt_token_ids[first:], np.int64)
        recent = recent[(recent >= 0) & (recent < vocab_size)]
        distinct, counts = np.unique(recent, return_counts=True)
        self._slots = {token_id: slot for slot, token_id in enumerate(distinct.tolist())}
        # One row each: token id, count among prompt and output, count among the output.
        self._table = np.zeros((3, max(64, 2 * len(distinct))), np.int64)
        self._table[0, : len(distinct)] = distinct
        self._table[1, : len(distinct)] = counts

    def append(self, output_token_ids: Sequence[int]) -> None:
        """Count the outputs that are new since the last call."""
        for token_id in output_token_ids[self.num_outputs :]:
            self._add(token_id, 1, is_output=True)
            self.num_outputs += 1
            leaving = len(self._prompt) + self.num_outputs - 1 - self._window
            if self._window and leaving >= 0:
                from_output = leaving - len(self._prompt)
                is_output = from_output >= 0
                left = output_token_ids[from_output] if is_output else self._prompt[leaving]
                self._add(left, -1, is_output=is_output)

    def in_context(self) -> IntArray:
        """The distinct tokens of the window."""
        return self._column(0)[self._column(1) > 0]

    def in_output(self) -> tuple[IntArray, IntArray]:
        """The distinct generated tokens of the window, and how often each occurs."""
        counts = self._column(2)
        found = counts > 0
        return self._column(0)[found], counts[found]

    def _add(self, token_id: int, number: int, *, is_output: bool) -> None:
        if not 0 <= token_id < self._vocab_size:
            return
        slot = self._slots.setdefault(token_id, len(self._slots))
        if slot == self._table.shape[1]:
            self._table = np.concatenate([self._table, np.zeros_like(self._table)], axis=1)
        self._table[0, slot] = token_id
        self._table[1, slot] += number
        if is_output:
            self._table[2, slot] += number

    def _column(self, row: int) -> IntArray:
        return self._table[row, : len(self._slots)]


class SuffixMatches:
    """For every earlier position: how many tokens up to it equal the sequence's last tokens.

    The basis of DRY and of n-gram bans: what followed a long match is what would repeat it.
    A match never reaches across a breaker.
    """

    def __init__(self, token_ids: Sequence[int], breakers: Collection[int] = ()) -> None:
        self.breakers = frozenset(breakers)
        self._tokens = np.array(token_ids, np.int64)
        self._size = len(token_ids)
        # _lengths[i] belongs to position i; the last position is no earlier one.
        self._lengths = _match_lengths(list(token_ids), self.breakers)

    def append(self, token_id: int) -> None:
        """Follow the sequence by one token."""
        earlier = self._tokens[: self._size]
        if token_id in self.breakers:
            self._lengths = np.zeros(self._size, np.int64)
        else:
            longer = np.ones(self._size, np.int64)
            longer[1:] += self._lengths
            self._lengths = longer * (earlier == token_id)
        if self._size == len(self._tokens):
            self._tokens = np.concatenate([earlier, np.zeros(64 + self._size // 2, np.int64)])
        self._tokens[self._size] = token_id
        self._size += 1

    def followers(self, least_length: int) -> tuple[IntArray, IntArray]:
        """Tokens that followed a match of at least this length, and the lengths; with repeats."""
        if least_length <= 0:
            # An empty match is everywhere, also before the first token.
            return self._tokens[: self._size], np.zeros(self._size, np.int64)
        found = np.flatnonzero(self._lengths >= least_length)
        return self._tokens[found + 1], self._lengths[found]


def longest_by_token(token_ids: IntArray, lengths: IntArray) -> tuple[IntArray, IntArray]:
    """Each distinct token with the largest of its lengths."""
    distinct, inverse = np.unique(token_ids, return_inverse=True)
    longest: NDArray[Any] = np.zeros(len(distinct), np.int64)
    np.maximum.at(longest, inverse, lengths)
    return distinct, longest


def _match_lengths(token_ids: list[int], breakers: frozenset[int]) -> IntArray:
    """The Z-function of the reversed tokens, cut at the first breaker: linear in their number."""
    reverse = token_ids[::-1]
    size = len(reverse)
    if size < 2:
        return np.zeros(0, np.int64)
    limit = next((i for i, token_id in enumerate(reverse) if token_id in breakers), size)
    common = [0] * size
    left = right = 0
    for i in range(1, size):
        length = min(right - i, common[i - left]) if i < right else 0
        while i + length < size and reverse[length] == reverse[i + length]:
            length += 1
        common[i] = length
        if i + length > right:
            left, right = i, i + length
    return np.minimum(np.array(common[:0:-1], np.int64), limit)
