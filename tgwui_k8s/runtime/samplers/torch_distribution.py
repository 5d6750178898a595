"""Softmax with what the samplers need of it, in torch; removed candidates (-inf) have weight 0.

Arrays are [rows, n], columns [rows, 1]. Weights are float32, sums float64: a row sums to the same
number in a batch and alone.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, slots=True)
class Distribution:
    """softmax(logits) as `weights / total`, where weights = exp(logits - peak)."""

    peak: Tensor
    """Column: the largest logit; 0 in a row without candidates."""
    weights: Tensor
    total: Tensor
    """Column, float64: the sum of the weights; 1 in a row without candidates."""

    @staticmethod
    def of(logits: Tensor) -> Distribution:
        """The distribution these logits stand for."""
        peak = logits.amax(1, keepdim=True)
        peak = torch.where(peak.isfinite(), peak, 0.0)
        weights = (logits - peak).exp_()
        total = weights.sum(1, keepdim=True, dtype=torch.float64)
        return Distribution(peak, weights, torch.where(total == 0, 1.0, total))

    @property
    def log_total(self) -> Tensor:
        """Column: how far a logit minus `peak` lies above the logarithm of its probability."""
        return self.total.log()

    def entropy(self, logits: Tensor) -> Tensor:
        """Column: Shannon entropy in nats; `logits` are those it was made of."""
        surprise = self.weights * (self.peak - logits)
        surprise.masked_fill_(self.weights == 0, 0.0)
        return self.log_total + surprise.sum(1, keepdim=True, dtype=torch.float64) / self.total
