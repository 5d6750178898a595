"""The NumPy kernels: taking rows, editing logits, drawing, log probabilities."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tgwui_k8s.engine.samplers import temperature, truncation
from tgwui_k8s.engine.samplers.distribution import Distribution, Float, count
from tgwui_k8s.engine.samplers.packing import compact, find
from tgwui_k8s.runtime.samplers.kernels import Arrival, Candidates, TopTokens

_ELEMENTS_PER_PASS = 2**18
"""Logits to work on at once: a megabyte, so that one pass finds them in the cache."""

_BLOCK = 256
"""Columns that the inverse CDF sums up before it looks closer."""


class NumpyKernels:
    """The array operations in NumPy; see `Kernels` for what each does."""

    samplers: Mapping[str, Callable[..., None]] = {
        "temperature": temperature.temperature,
        "dynamic_temperature": temperature.dynamic_temperature,
        "quadratic_sampling": temperature.quadratic_sampling,
        "top_n_sigma": truncation.top_n_sigma,
        "top_k": truncation.top_k,
        "top_p": truncation.top_p,
        "typical_p": truncation.typical_p,
        "epsilon_cutoff": truncation.epsilon_cutoff,
        "eta_cutoff": truncation.eta_cutoff,
        "tfs": truncation.tfs,
        "top_a": truncation.top_a,
        "min_p": truncation.min_p,
        "mirostat": truncation.mirostat,
        "xtc": truncation.xtc,
    }

    def rows_per_pass(self, vocab_size: int) -> int:
        return max(1, _ELEMENTS_PER_PASS // vocab_size)

    def take(self, logits: NDArray[Any], indices: Sequence[int]) -> Float:
        taken: Float = np.asarray(logits)[list(indices)].astype(np.float32, copy=False)
        return taken

    def guide(
        self, logits: Float, rows: Sequence[int], negatives: Float, scales: Sequence[float]
    ) -> None:
        positive, negative = _log_softmax(logits[list(rows)]), _log_softmax(negatives)
        guided = negative + np.array(scales, np.float32)[:, None] * (positive - negative)
        # What either side excludes stays excluded: the difference would say nothing.
        excluded = (positive == -np.inf) | (negative == -np.inf)
        logits[list(rows)] = np.where(excluded, np.float32(-np.inf), guided)

    def restrict(self, logits: Float, rows: Sequence[int], masks: Sequence[Any]) -> None:
        for row, mask in zip(rows, masks, strict=True):
            allowed = np.asarray(mask, np.bool_)
            logits[row, : len(allowed)][~allowed[: logits.shape[1]]] = -np.inf
            logits[row, len(allowed) :] = -np.inf

    def add_at(
        self,
        candidates: Candidates,
        rows: NDArray[np.int64],
        token_ids: NDArray[np.int64],
        values: NDArray[np.float64],
    ) -> None:
        columns, found = find(candidates, rows, token_ids)
        candidates.logits[rows[found], columns[found]] += values[found].astype(np.float32)

    def scale_at(
        self,
        candidates: Candidates,
        rows: NDArray[np.int64],
        token_ids: NDArray[np.int64],
        values: NDArray[np.float64],
    ) -> None:
        columns, found = find(candidates, rows, token_ids)
        places, factors = (rows[found], columns[found]), values[found].astype(np.float32)
        old = candidates.logits[places]
        candidates.logits[places] = np.where(old > 0, old / factors, old * factors)

    def empty_broken(self, logits: Float) -> None:
        peaks = logits.max(axis=1)
        logits[~np.isfinite(peaks)] = -np.inf

    def columns(self, parameters: Sequence[Sequence[float]], logits: Float) -> Sequence[Float]:
        return [np.array(numbers, np.float32)[:, None] for numbers in parameters]

    def positions_of(
        self, candidates: Candidates, token_ids: Sequence[Sequence[int]]
    ) -> NDArray[np.bool_]:
        found = np.zeros(candidates.logits.shape, np.bool_)
        for row, wanted in enumerate(token_ids):
            if candidates.token_ids is None:
                found[row, [i for i in wanted if i < found.shape[1]]] = True
            else:
                found[row] = np.isin(candidates.token_ids[row], wanted)
        return found

    def compact(self, candidates: Candidates, most: int | None) -> Candidates:
        return compact(candidates)

    def argmax(self, logits: Float) -> tuple[NDArray[Any], NDArray[Any]]:
        best = logits.argmax(axis=1)
        return best, logits[np.arange(len(logits)), best]

    def draw(
        self, candidates: Candidates, uniforms: Sequence[float]
    ) -> tuple[NDArray[Any], NDArray[Any]]:
        distribution = Distribution.of(candidates.logits)
        columns = _invert(distribution.weights, np.array(uniforms))
        rows = np.arange(len(columns))
        weights = distribution.weights[rows, columns].astype(np.float64)
        token_ids = columns if candidates.token_ids is None else candidates.token_ids[rows, columns]
        token_ids = np.where(weights > 0, token_ids, 0)
        return token_ids, np.log(weights / distribution.total[:, 0])

    def logprobs_of(self, candidates: Candidates, token_ids: Sequence[int]) -> NDArray[Any]:
        distribution = Distribution.of(candidates.logits)
        wanted = self.positions_of(candidates, [[token_id] for token_id in token_ids])
        weights = np.where(wanted, distribution.weights, np.float32(0)).sum(axis=1, dtype=float)
        logprobs: NDArray[Any] = np.log(weights / distribution.total[:, 0])
        return logprobs

    def top_tokens(self, candidates: Candidates, token_ids: Any, num_top: int) -> TopTokens:
        logits = candidates.logits
        rows = np.arange(len(logits))
        columns = np.asarray(token_ids)
        if candidates.token_ids is not None:
            columns = (candidates.token_ids == columns[:, None]).argmax(axis=1)
        own = logits[rows, columns]
        ranks = 1 + count(logits > own[:, None])
        ranks += [
            np.count_nonzero(values[:column] == value)
            for values, column, value in zip(logits, columns, own, strict=True)
        ]
        best = _best_columns(logits, min(num_top, logits.shape[1]))
        distribution = Distribution.of(logits)
        log_sum = distribution.peak + distribution.log_total
        return TopTokens(
            logprobs=(own - log_sum[:, 0]).astype(np.float32),
            ranks=ranks,
            top_token_ids=best
            if candidates.token_ids is None
            else np.take_along_axis(candidates.token_ids, best, axis=1),
            top_logprobs=(np.take_along_axis(logits, best, axis=1) - log_sum).astype(np.float32),
        )

    def index(self, rows: Sequence[int], logits: Float) -> Sequence[int]:
        return rows

    def in_order(self, parts: Sequence[NDArray[Any]], places: Sequence[int]) -> NDArray[Any]:
        together = np.concatenate(parts)
        ordered = np.empty_like(together)
        ordered[list(places)] = together
        return ordered

    def send(self, arrays: Sequence[NDArray[Any]], logits: Float) -> Arrival:
        return lambda: list(arrays)


def _log_softmax(logits: Float) -> Float:
    distribution = Distribution.of(logits)
    return logits - (distribution.peak + distribution.log_total).astype(np.float32)


def _invert(weights: Float, uniforms: NDArray[np.float64]) -> NDArray[np.int64]:
    """Inverse CDF: in each row the first column at which the running sum exceeds its share.

    Blocks of columns are summed up first, and only the block with the answer is looked into.
    """
    num_rows, num_columns = weights.shape
    num_blocks = -(-num_columns // _BLOCK)
    blocks = np.zeros((num_rows, num_blocks * _BLOCK), np.float32)
    blocks[:, :num_columns] = weights
    blocks = blocks.reshape(num_rows, num_blocks, _BLOCK)
    before = np.cumsum(blocks.sum(axis=2, dtype=np.float64), axis=1)
    totals = before[:, -1]
    goals = np.minimum(uniforms * totals, np.nextafter(totals, 0.0))
    rows = np.arange(num_rows)
    block = np.minimum(count(before <= goals[:, None]), num_blocks - 1)
    inside = blocks[rows, block]
    goals -= np.where(block > 0, before[rows, block - 1], 0.0)
    reached = np.cumsum(inside, axis=1, dtype=np.float64)
    column = count(reached <= goals[:, None])
    # Both levels round; never step past the last token that can come.
    last = _BLOCK - 1 - np.argmax(inside[:, ::-1] > 0, axis=1)
    columns: NDArray[np.int64] = np.minimum(
        block * _BLOCK + np.minimum(column, last), num_columns - 1
    )
    return columns


def _best_columns(logits: Float, number: int) -> NDArray[np.int64]:
    """Columns of the largest logits, best first; equals in order of column."""
    best = np.zeros((len(logits), number), np.int64)
    if number:
        least = np.partition(logits, -number, axis=1)[:, -number]
        for row, values in enumerate(logits):
            # Not ">=": a row that holds NaN has to find as many columns as any other.
            columns = np.flatnonzero(~(values < least[row]))
            order = np.argsort(-values[columns], kind="stable")
            best[row] = columns[order[:number]]
    return best
