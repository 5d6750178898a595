"""Samplers that keep some candidates and remove the others, in torch. All work in place.

`tgwui_k8s.engine.samplers.truncation` says what each one is. None waits for the device but nucleus
sampling among many candidates: how many are to be sorted depends on the data.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from tgwui_k8s.runtime.samplers.kernels import LOG_TOLERANCE, MASS_TOLERANCE, MOST_COMPACT
from tgwui_k8s.runtime.samplers.torch_distribution import Distribution

_MINUS_INFINITY = float("-inf")

# ------------------------------------------------------------------------------- by threshold


def top_n_sigma(logits: Tensor, num_sigmas: Tensor) -> None:
    """Keep logits within so many standard deviations of the largest."""
    peak = Distribution.of(logits).peak
    removed = logits == _MINUS_INFINITY
    number = (~removed).sum(1, keepdim=True).clamp_min(1)
    distance = (logits - peak).masked_fill_(removed, 0.0)
    mean = distance.sum(1, keepdim=True, dtype=torch.float64) / number
    deviation = (distance - mean.float()).masked_fill_(removed, 0.0)
    variance = deviation.square().sum(1, keepdim=True, dtype=torch.float64) / number
    _drop_below(logits, peak, -num_sigmas * variance.sqrt())


def min_p(logits: Tensor, share: Tensor) -> None:
    """Keep tokens at least `share` times as likely as the likeliest one."""
    _drop_below(logits, Distribution.of(logits).peak, _log(share))


def top_a(logits: Tensor, factor: Tensor) -> None:
    """Keep tokens with p >= factor * p_max**2."""
    distribution = Distribution.of(logits)
    _drop_below(logits, distribution.peak, _log(factor) - distribution.log_total)


def epsilon_cutoff(logits: Tensor, cutoff: Tensor) -> None:
    """Keep tokens with p >= cutoff * 1e-4."""
    distribution = Distribution.of(logits)
    _drop_below(logits, distribution.peak, _log(cutoff * 1e-4) + distribution.log_total)


def eta_cutoff(logits: Tensor, cutoff: Tensor) -> None:
    """Keep p >= min(e, sqrt(e) * exp(-entropy)), e = cutoff * 1e-4."""
    distribution = Distribution.of(logits)
    log_epsilon = _log(cutoff * 1e-4)
    log_eta = torch.minimum(log_epsilon, log_epsilon / 2 - distribution.entropy(logits))
    _drop_below(logits, distribution.peak, log_eta + distribution.log_total)


def mirostat(logits: Tensor, surprise_limit: Tensor) -> None:
    """Keep tokens whose surprise -log2(p) is at most Mirostat's mu."""
    distribution = Distribution.of(logits)
    log_least = surprise_limit.double() * -math.log(2.0)
    _drop_below(logits, distribution.peak, log_least + distribution.log_total)


def xtc(logits: Tensor, threshold: Tensor, protected: Tensor) -> None:
    """Of the tokens with p >= threshold, keep the least likely alone."""
    distribution = Distribution.of(logits)
    limit = _limit(distribution.peak, _log(threshold) + distribution.log_total)
    above = (logits >= limit) & (logits > _MINUS_INFINITY)
    ranked = logits.masked_fill(~above, math.inf)
    least = ranked.shape[1] - 1 - ranked.flip(1).argmin(1, keepdim=True)
    above.scatter_(1, least, value=False)
    above &= ~(above & protected).any(1, keepdim=True)
    logits.masked_fill_(above, _MINUS_INFINITY)


# ---------------------------------------------------------------------------------- by number


def top_k(logits: Tensor, number: Tensor, most: int) -> None:
    """Keep the so many most likely tokens; `most` is the largest number."""
    counts = number.long().clamp(1, logits.shape[1])
    best = _largest(logits, min(most, logits.shape[1]))
    _keep_best(logits, logits, best.gather(1, counts - 1), counts)


def top_p(logits: Tensor, mass: Tensor) -> None:
    """Keep the fewest most likely tokens that together reach this probability (nucleus)."""
    distribution = Distribution.of(logits)
    goal = distribution.total * mass
    number = MOST_COMPACT  # they are sorted before it is asked whether they are enough
    while True:
        best = _largest(distribution.weights, number)
        reached = best.cumsum(1, dtype=torch.float64)
        if number >= logits.shape[1] or not bool((reached[:, -1:] < goal).any()):
            break
        number *= 4
    _keep_mass(logits, distribution.weights, best, reached, goal)


def typical_p(logits: Tensor, mass: Tensor) -> None:
    """Keep what is about as surprising as expected (locally typical sampling)."""
    distribution = Distribution.of(logits)
    entropy = distribution.entropy(logits)
    expected = (distribution.log_total - entropy).float()
    closeness = (logits - distribution.peak - expected).abs_().neg_()
    closeness.masked_fill_(~closeness.isfinite(), _MINUS_INFINITY)
    ordered, order = torch.sort(closeness, dim=1, descending=True)
    reached = distribution.weights.gather(1, order).cumsum(1, dtype=torch.float64)
    _keep_mass(logits, closeness, ordered, reached, distribution.total * mass)


def tfs(logits: Tensor, share: Tensor) -> None:
    """Tail-free sampling: cut where the curve of probabilities flattens."""
    distribution = Distribution.of(logits)
    ordered = _largest(distribution.weights, logits.shape[1])
    falling = torch.nn.functional.pad(ordered.double(), (0, 2))
    reached = falling.diff(n=2, dim=1).abs().cumsum(1)
    goal = (share + MASS_TOLERANCE) * reached[:, -1:]
    counts = 1 + (reached[:, :-1] <= goal).sum(1, keepdim=True)
    _keep_best(logits, distribution.weights, ordered.gather(1, counts - 1), counts)


# ------------------------------------------------------------------------------------ helpers


def _log(column: Tensor) -> Tensor:
    return column.double().log()


def _limit(peak: Tensor, log_least: Tensor) -> Tensor:
    """Least logit to be kept; `log_least` is relative to the peak, which is always kept."""
    return peak + (log_least - LOG_TOLERANCE).clamp_max(0.0).float()


def _drop_below(logits: Tensor, peak: Tensor, log_least: Tensor) -> None:
    logits.masked_fill_(logits < _limit(peak, log_least), _MINUS_INFINITY)


def _largest(values: Tensor, number: int) -> Tensor:
    """The so many largest values of each row, best first; all of them where there are fewer."""
    if 4 * number > values.shape[1]:
        return torch.sort(values, dim=1, descending=True).values[:, :number]
    return values.topk(number, dim=1).values


def _keep_mass(
    logits: Tensor, keys: Tensor, ordered: Tensor, reached: Tensor, goal: Tensor
) -> None:
    """Keep the candidates with the best keys, as few as have weights that sum up to the goal."""
    missing = reached < goal - MASS_TOLERANCE * goal.clamp_min(1.0)
    counts = (missing.sum(1, keepdim=True) + 1).clamp_max(ordered.shape[1])
    _keep_best(logits, keys, ordered.gather(1, counts - 1), counts)


def _keep_best(logits: Tensor, keys: Tensor, cuts: Tensor, counts: Tensor) -> None:
    """Keep the `counts` candidates with the best keys; `cuts` are the keys of the last of them."""
    removed = keys < cuts
    surplus = (~removed).sum(1, keepdim=True) - counts
    equals = keys == cuts
    num_kept_equals = equals.sum(1, keepdim=True) - surplus
    removed |= equals & (equals.cumsum(1) > num_kept_equals)
    logits.masked_fill_(removed, _MINUS_INFINITY)
