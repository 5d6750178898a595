"""Samplers that reshape the distribution and remove nothing, in torch. All work in place.

`tgwui_k8s.engine.samplers.temperature` says what each one is.
"""

from __future__ import annotations

from torch import Tensor

from tgwui_k8s.runtime.samplers.kernels import LEAST_TEMPERATURE
from tgwui_k8s.runtime.samplers.torch_distribution import Distribution

_MINUS_INFINITY = float("-inf")


def temperature(logits: Tensor, temperature: Tensor) -> None:
    """Divide by the temperature."""
    logits /= temperature.clamp_min(LEAST_TEMPERATURE)


def dynamic_temperature(logits: Tensor, low: Tensor, high: Tensor, exponent: Tensor) -> None:
    """Divide by a temperature between `low` and `high` that grows with the entropy."""
    entropy = Distribution.of(logits).entropy(logits)
    num_candidates = (logits > _MINUS_INFINITY).sum(1, keepdim=True)
    share = (entropy / num_candidates.clamp_min(2).double().log()).clamp(0.0, 1.0)
    temperature(logits, (low + (high - low) * share**exponent).float())


def quadratic_sampling(logits: Tensor, factor: Tensor, curve: Tensor) -> None:
    """Bend the logits along a parabola, or along a cubic where `curve` is above 1."""
    peak = Distribution.of(logits).peak
    distance = logits - peak
    square, cubic = factor * (3 - curve) / 2, factor * (curve - 1) / 2
    bent = distance * distance * (cubic * distance - square) + peak
    logits.copy_(bent.masked_fill_(logits == _MINUS_INFINITY, _MINUS_INFINITY))
