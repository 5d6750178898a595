"""Samplers that reshape the distribution and remove nothing. All work in place."""

from __future__ import annotations

import numpy as np

from tgwui_k8s.engine.samplers.distribution import Distribution, Float, count
from tgwui_k8s.runtime.samplers.kernels import LEAST_TEMPERATURE


def temperature(logits: Float, temperature: Float) -> None:
    """Divide by the temperature."""
    logits /= np.maximum(temperature, np.float32(LEAST_TEMPERATURE))


def dynamic_temperature(logits: Float, low: Float, high: Float, exponent: Float) -> None:
    """Divide by a temperature between `low` and `high` that grows with the entropy.

    low + (high - low) * (entropy / largest possible entropy) ** exponent; the largest possible
    entropy is the logarithm of the number of candidates.
    """
    entropy = Distribution.of(logits).entropy(logits)
    num_candidates = count(logits > -np.inf)[:, None]
    share = np.clip(entropy / np.log(np.maximum(num_candidates, 2)), 0.0, 1.0)
    temperature(logits, (low + (high - low) * share**exponent).astype(np.float32))


def quadratic_sampling(logits: Float, factor: Float, curve: Float) -> None:
    """Bend the logits: with d = logit - largest, largest + factor * (cubic * d**3 - square * d**2).

    square = (3 - curve) / 2 and cubic = (curve - 1) / 2: a parabola at curve 1, steeper below it
    as the curve grows.
    """
    peak = Distribution.of(logits).peak
    distance = logits - peak
    square, cubic = factor * (3 - curve) / 2, factor * (curve - 1) / 2
    bent = distance * distance * (cubic * distance - square) + peak
    np.copyto(logits, bent, where=logits > -np.inf)
