"""Samplers that keep some candidates and remove the others, in torch. All work in place.

`tgwui_k8s.engine.samplers.truncation` says what each one is. None waits for the device: how much
there is to do never depends on the data.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from tgwui_k8s.runtime.samplers.kernels import LOG_TOLERANCE, MASS_TOLERANCE
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
    weights = distribution.weights
    goal = _within_tolerance(distribution.total * mass)
    cut, mass_above = _find_cut(weights, goal)
    num_equals = ((goal - mass_above) / cut).ceil().clamp(1, logits.shape[1]).long()
    _keep_best(logits, weights, cut, (weights > cut).sum(1, keepdim=True) + num_equals)


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


def _find_cut(weights: Tensor, goal: Tensor) -> tuple[Tensor, Tensor]:
    """Columns: the largest weight that, with all larger ones, sums up to the goal; their sum.

    Weights are between 0 and 1, where floats order like their bits. The bits are found in three
    digits, each from the sums over its values, so that nothing is sorted.
    """
    bits = weights.contiguous().view(torch.int32)
    left = weights.double()
    cut = torch.zeros_like(bits[:, :1])
    above = torch.zeros_like(goal)
    for shift in (20, 10, 0):
        digits = (bits >> shift).bitwise_and(1023).long()
        sums = torch.zeros(len(bits), 1024, dtype=torch.float64, device=bits.device)
        sums.scatter_add_(1, digits, left)
        reached = above + sums.flip(1).cumsum(1).flip(1)
        digit = ((reached >= goal).sum(1, keepdim=True) - 1).clamp_min(0)
        above = torch.cat([reached, above], dim=1).gather(1, digit + 1)
        left = left.masked_fill_(digits != digit, 0.0)
        cut |= digit.int() << shift
    return cut.view(torch.float32), above


def _within_tolerance(goal: Tensor) -> Tensor:
    """What must be reached; one candidate must be, however small the goal."""
    least = torch.finfo(torch.float64).tiny
    return (goal - MASS_TOLERANCE * goal.clamp_min(1.0)).clamp_min(least)


def _largest(values: Tensor, number: int) -> Tensor:
    """The so many largest values of each row, best first; all of them where there are fewer."""
    if 4 * number > values.shape[1]:
        return torch.sort(values, dim=1, descending=True).values[:, :number]
    return values.topk(number, dim=1).values


def _keep_mass(
    logits: Tensor, keys: Tensor, ordered: Tensor, reached: Tensor, goal: Tensor
) -> None:
    """Keep the candidates with the best keys, as few as have weights that sum up to the goal."""
    missing = reached < _within_tolerance(goal)
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
