"""Samplers that keep some candidates and remove the others (logit -inf). All work in place.

Two shapes of rule: a threshold on the probability, or a number of best candidates. Equal
candidates at the border of a number are kept in order of token id. The most likely candidate
passes every threshold.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from tgwui_k8s.engine.samplers.distribution import Distribution, Double, Float, count
from tgwui_k8s.runtime.samplers.kernels import LOG_TOLERANCE, MASS_TOLERANCE

_FIRST_WINDOW = 1024
"""Tokens that nucleus sampling sorts before it asks whether they are enough."""

# ------------------------------------------------------------------------------- by threshold


def top_n_sigma(logits: Float, num_sigmas: Float) -> None:
    """Keep logits within so many standard deviations of the largest (Tang et al. 2024)."""
    peak = Distribution.of(logits).peak
    present = logits > -np.inf
    number = np.maximum(count(present)[:, None], 1)
    distance = np.where(present, logits - peak, np.float32(0))
    mean = distance.sum(axis=1, keepdims=True, dtype=np.float64) / number
    deviation = np.where(present, distance - mean.astype(np.float32), np.float32(0))
    variance = np.square(deviation).sum(axis=1, keepdims=True, dtype=np.float64) / number
    _drop_below(logits, peak, -num_sigmas * np.sqrt(variance))


def min_p(logits: Float, share: Float) -> None:
    """Keep tokens at least `share` times as likely as the likeliest one (Nguyen et al. 2024)."""
    _drop_below(logits, Distribution.of(logits).peak, np.log(share.astype(np.float64)))


def top_a(logits: Float, factor: Float) -> None:
    """Keep tokens with p >= factor * p_max**2."""
    distribution = Distribution.of(logits)
    # p_max is 1 / total: in units of p_max, the threshold is factor * p_max.
    _drop_below(logits, distribution.peak, _log(factor) - distribution.log_total)


def epsilon_cutoff(logits: Float, cutoff: Float) -> None:
    """Keep tokens with p >= cutoff * 1e-4 (Hewitt et al. 2022)."""
    distribution = Distribution.of(logits)
    _drop_below(logits, distribution.peak, _log(cutoff * 1e-4) + distribution.log_total)


def eta_cutoff(logits: Float, cutoff: Float) -> None:
    """Keep p >= min(e, sqrt(e) * exp(-entropy)), e = cutoff * 1e-4 (Hewitt et al. 2022)."""
    distribution = Distribution.of(logits)
    log_epsilon = _log(cutoff * 1e-4)
    log_eta = np.minimum(log_epsilon, log_epsilon / 2 - distribution.entropy(logits))
    _drop_below(logits, distribution.peak, log_eta + distribution.log_total)


def mirostat(logits: Float, surprise_limit: Float) -> None:
    """Keep tokens whose surprise -log2(p) is at most Mirostat's mu (Basu et al. 2021)."""
    distribution = Distribution.of(logits)
    log_least = surprise_limit.astype(np.float64) * -math.log(2.0)
    _drop_below(logits, distribution.peak, log_least + distribution.log_total)


def xtc(logits: Float, threshold: Float, protected: NDArray[np.bool_]) -> None:
    """Exclude top choices: of the tokens with p >= threshold, keep the least likely alone.

    Nothing happens in a row where that would remove a `protected` candidate.
    """
    distribution = Distribution.of(logits)
    limit = _limit(distribution.peak, _log(threshold) + distribution.log_total)
    above = (logits >= limit) & (logits > -np.inf)
    ranked = np.where(above, logits, np.float32(np.inf))
    # Of equals the last one is the least likely: order is by logit, then by token id.
    least = ranked.shape[1] - 1 - np.argmin(ranked[:, ::-1], axis=1)
    above[np.arange(len(above)), least] = False
    above[(above & protected).any(axis=1)] = False
    np.copyto(logits, -np.inf, where=above)


# ---------------------------------------------------------------------------------- by number


def top_k(logits: Float, number: Float, most: int) -> None:
    """Keep the so many most likely tokens; `most` is the largest number."""
    counts = np.clip(number[:, 0].astype(np.int64), 1, logits.shape[1])
    best = _largest(logits, min(most, logits.shape[1]))
    _keep_best(logits, logits, best[np.arange(len(best)), counts - 1], counts)


def top_p(logits: Float, mass: Float) -> None:
    """Keep the fewest most likely tokens that together reach this probability (nucleus).

    Holtzman et al. 2019. The tokens that can matter are nearly always among the best thousand;
    where they are not, more are sorted.
    """
    distribution = Distribution.of(logits)
    goal = distribution.total * mass
    number = _FIRST_WINDOW
    while True:
        best = _largest(distribution.weights, number)
        reached = np.cumsum(best, axis=1, dtype=np.float64)
        if number >= logits.shape[1] or (reached[:, -1:] >= goal).all():
            break
        number *= 4
    _keep_mass(logits, distribution.weights, best, reached, goal)


def typical_p(logits: Float, mass: Float) -> None:
    """Keep what is about as surprising as expected (locally typical sampling, Meister et al. 2022).

    Tokens in order of |surprise - entropy|, the fewest that together reach the probability.
    """
    distribution = Distribution.of(logits)
    entropy = distribution.entropy(logits)
    # The surprise of a token is log_total - (logit - peak).
    expected = (distribution.log_total - entropy).astype(np.float32)
    closeness = -np.abs(logits - distribution.peak - expected)
    np.copyto(closeness, -np.inf, where=~np.isfinite(closeness))
    order = np.argsort(closeness, axis=1)[:, ::-1]
    ordered = np.take_along_axis(closeness, order, axis=1)
    weights = np.take_along_axis(distribution.weights, order, axis=1)
    reached = np.cumsum(weights, axis=1, dtype=np.float64)
    _keep_mass(logits, closeness, ordered, reached, distribution.total * mass)


def tfs(logits: Float, share: Float) -> None:
    """Tail-free sampling (Phénix and Egan 2019): cut where the curve of probabilities flattens.

    Probabilities in falling order, followed by zeros; the absolute second differences, normalised,
    sum up to `share` at the cut. The most likely token is kept besides.
    """
    distribution = Distribution.of(logits)
    ordered = _largest(distribution.weights, logits.shape[1])
    falling = np.pad(ordered.astype(np.float64), ((0, 0), (0, 2)))
    bends = np.abs(np.diff(falling, n=2, axis=1))
    reached = np.cumsum(bends, axis=1)
    goal = (share + MASS_TOLERANCE) * reached[:, -1:]
    counts = 1 + count(reached[:, :-1] <= goal)
    _keep_best(logits, distribution.weights, ordered[np.arange(len(ordered)), counts - 1], counts)


# ------------------------------------------------------------------------------------ helpers


def _log(column: Float) -> Double:
    log: Double = np.log(column.astype(np.float64))
    return log


def _limit(peak: Float, log_least: Double) -> Float:
    """Least logit to be kept; `log_least` is relative to the peak, which is always kept."""
    return peak + np.minimum(log_least - LOG_TOLERANCE, 0.0).astype(np.float32)


def _drop_below(logits: Float, peak: Float, log_least: Double) -> None:
    np.copyto(logits, -np.inf, where=logits < _limit(peak, log_least))


def _largest(values: Float, number: int) -> Float:
    """The so many largest values of each row, best first; all of them where there are fewer."""
    if number < values.shape[1]:
        values = np.partition(values, -number, axis=1)[:, -number:]
    # Sorted as negatives: a reversed view would slow down what reads it.
    negatives = -values
    negatives.sort(axis=1)
    return np.negative(negatives, out=negatives)


def _keep_mass(logits: Float, keys: Float, ordered: Float, reached: Double, goal: Double) -> None:
    """Keep the candidates with the best keys, as few as have weights that sum up to the goal.

    `ordered` are keys in falling order, `reached` the running sums of the weights beside them.
    """
    missing = reached < goal - MASS_TOLERANCE * np.maximum(goal, 1.0)
    counts = np.minimum(count(missing) + 1, ordered.shape[1])
    _keep_best(logits, keys, ordered[np.arange(len(ordered)), counts - 1], counts)


def _keep_best(logits: Float, keys: Float, cuts: Float, counts: NDArray[np.int64]) -> None:
    """Keep the `counts` candidates with the best keys; `cuts` are the keys of the last of them."""
    kept = keys >= cuts[:, None]
    surplus = count(kept) - counts
    for row in np.flatnonzero(surplus > 0):
        equals = np.flatnonzero(keys[row] == cuts[row])
        kept[row, equals[len(equals) - surplus[row] :]] = False
    np.copyto(logits, -np.inf, where=np.logical_not(kept, out=kept))
