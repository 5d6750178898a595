"""The array operations a sampler is made of: what NumPy and torch each provide.

The pipeline decides what happens to which rows; kernels compute. Arrays are the library's own, on
the device where the logits lie; whatever else goes in is on the host, and only `send` brings
results back to it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

Array = Any
"""A NumPy array or a torch tensor."""

LOG_TOLERANCE = 1e-5
"""Thresholds on log probabilities are met within this: rounding must not decide at equality."""

MASS_TOLERANCE = 1e-6
"""Sums of probabilities reach their goal within this."""

MOST_COMPACT = 1024
"""More candidates than this are not few: to sort them, or to pick them out, is work."""

LEAST_TEMPERATURE = 1e-5
"""Below this, quotients would overflow float32; the draw is as good as greedy long before."""

Arrival = Callable[[], list[NDArray[Any]]]
"""Waits for arrays on their way to the host."""

PADDING = 2**40
"""The token id of an empty place in `Candidates`: behind every token, and its logit is -inf."""


@dataclass(slots=True)
class Candidates:
    """Logits of several rows, with the tokens they belong to.

    `logits` float32 [rows, n]; a candidate that was removed has -inf. `token_ids` int64
    [rows, n], ascending in every row; None: column and token id are the same.
    """

    logits: Array
    token_ids: Array | None = None


@dataclass(frozen=True, slots=True)
class TopTokens:
    """Log probabilities of chosen tokens and of the most likely ones; [rows] and [rows, k].

    Equal logits rank by token id, lowest first. Float32 values in float64.
    """

    logprobs: Array
    ranks: Array
    top_token_ids: Array
    top_logprobs: Array


class Kernels(Protocol):
    """One array library's half of the sampler."""

    samplers: Mapping[str, Callable[..., None]]
    """The samplers that are no edits, by name of `SAMPLER_ORDER`. Each changes `logits`
    [rows, n] in place and takes its parameters as float32 columns [rows, 1]; XTC also takes a
    mask of candidates it must not remove, top-k the largest of its numbers. Every one leaves at
    least one candidate, and copes with rows that have none."""

    def rows_per_pass(self, vocab_size: int) -> int:
        """Rows to work on at once."""
        ...

    def take(self, logits: Array, indices: Sequence[int]) -> Array:
        """Float32 copies of these rows."""
        ...

    def guide(
        self, logits: Array, rows: Sequence[int], negatives: Array, scales: Sequence[float]
    ) -> None:
        """Classifier-free guidance (Sanchez et al. 2023), in place.

        With both sides' log-softmax: negative + scale * (positive - negative).
        """
        ...

    def restrict(self, logits: Array, rows: Sequence[int], masks: Sequence[Array]) -> None:
        """Remove everything outside the row's bool mask."""
        ...

    def add_at(
        self,
        candidates: Candidates,
        rows: NDArray[np.int64],
        token_ids: NDArray[np.int64],
        values: NDArray[np.float64],
    ) -> None:
        """Add `values[i]` to the logit of one token each; nothing to tokens removed before.

        The three arrays are equally long and on the host; no pair of row and token comes twice.
        """
        ...

    def scale_at(
        self,
        candidates: Candidates,
        rows: NDArray[np.int64],
        token_ids: NDArray[np.int64],
        values: NDArray[np.float64],
    ) -> None:
        """Divide a logit by its value where it is positive, else multiply them; like `add_at`."""
        ...

    def empty_broken(self, logits: Array) -> None:
        """Remove all candidates of rows that hold NaN or +inf."""
        ...

    def columns(self, parameters: Sequence[Sequence[float]], logits: Array) -> Sequence[Array]:
        """Host numbers as float32 columns [rows, 1], one per parameter, where `logits` lie."""
        ...

    def positions_of(self, candidates: Candidates, token_ids: Sequence[Sequence[int]]) -> Array:
        """Bool [rows, n]: candidates among the row's tokens."""
        ...

    def compact(self, candidates: Candidates, most: int | None) -> Candidates:
        """The same candidates in fewer columns, where many were removed; else the argument.

        `most` is how many a row can have, where that is known without looking.
        """
        ...

    def argmax(self, logits: Array) -> tuple[Array, Array]:
        """Of each row the largest logit's first column, and that logit."""
        ...

    def draw(self, candidates: Candidates, uniforms: Sequence[float]) -> tuple[Array, Array]:
        """Token ids by inverse CDF in order of token id, and their log probabilities.

        Without candidates: any token id of the vocabulary, and -inf.
        """
        ...

    def logprobs_of(self, candidates: Candidates, token_ids: Sequence[int]) -> Array:
        """Log probability of one token per row; -inf where it is no candidate."""
        ...

    def top_tokens(self, candidates: Candidates, token_ids: Array, num_top: int) -> TopTokens:
        """Log probabilities of `token_ids` [rows] and of the `num_top` most likely tokens."""
        ...

    def index(self, rows: Sequence[int], logits: Array) -> Array:
        """Row numbers, as arrays that lie where `logits` do are indexed without waiting."""
        ...

    def in_order(self, parts: Sequence[Array], places: Sequence[int]) -> Array:
        """The elements of all parts in one array: the i-th of them at `places[i]`."""
        ...

    def send(self, arrays: Sequence[Array], logits: Array) -> Arrival:
        """Begin to bring all of these from where `logits` lie to the host, in one transfer."""
        ...
