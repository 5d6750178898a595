"""Softmax with what the samplers need of it; removed candidates (-inf) have weight 0.

`Float` arrays are [rows, n]; a column is [rows, 1]. Weights are float32, sums float64: a row sums
to the same number in a batch and alone.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Float = NDArray[np.float32]
Double = NDArray[np.float64]


def count(mask: NDArray[np.bool_]) -> NDArray[np.int64]:
    """How many are true in each row; NumPy is slow to count along an axis."""
    return np.array([np.count_nonzero(row) for row in mask], np.int64)


@dataclass(frozen=True, slots=True)
class Distribution:
    """softmax(logits) as `weights / total`, where weights = exp(logits - peak)."""

    peak: Float
    """Column: the largest logit; 0 in a row without candidates."""
    weights: Float
    total: Double
    """Column: the sum of the weights; 1 in a row without candidates."""

    @staticmethod
    def of(logits: Float) -> Distribution:
        """The distribution these logits stand for."""
        peak = logits.max(axis=1, keepdims=True)
        peak = np.where(np.isfinite(peak), peak, np.float32(0))
        weights = logits - peak
        np.exp(weights, out=weights)
        total = weights.sum(axis=1, keepdims=True, dtype=np.float64)
        total[total == 0] = 1
        return Distribution(peak, weights, total)

    @property
    def log_total(self) -> Double:
        """Column: how far a logit minus `peak` lies above the logarithm of its probability."""
        log_total: Double = np.log(self.total)
        return log_total

    def entropy(self, logits: Float) -> Double:
        """Column: Shannon entropy in nats; `logits` are those it was made of."""
        surprise = self.weights * (self.peak - logits)
        np.copyto(surprise, 0, where=self.weights == 0)
        mean = surprise.sum(axis=1, keepdims=True, dtype=np.float64) / self.total
        entropy: Double = self.log_total + mean
        return entropy
