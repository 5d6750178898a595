"""The samplers by their definitions, in plain Python over lists: slow, and independent of ours.

A distribution is a list of probabilities; a removed token has 0. Every function returns the token
ids that are kept.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Sequence


def softmax(logits: Sequence[float]) -> list[float]:
    """Probabilities of logits."""
    peak = max(logits)
    weights = [math.exp(logit - peak) for logit in logits]
    total = math.fsum(weights)
    return [weight / total for weight in weights]


def entropy(p: Sequence[float]) -> float:
    """In nats."""
    return -math.fsum(x * math.log(x) for x in p if x > 0)


def best_first(p: Sequence[float]) -> list[int]:
    """Token ids by falling probability, equals by id."""
    return sorted(range(len(p)), key=lambda i: (-p[i], i))


def fewest_reaching(order: Iterable[int], p: Sequence[float], mass: float) -> set[int]:
    """The shortest beginning of `order` with this much probability."""
    kept: set[int] = set()
    total = 0.0
    for i in order:
        kept.add(i)
        total += p[i]
        if total >= mass:
            break
    return kept


def top_k(p: Sequence[float], k: int) -> set[int]:
    return set(best_first(p)[:k])


def top_p(p: Sequence[float], mass: float) -> set[int]:
    return fewest_reaching(best_first(p), p, mass)


def min_p(p: Sequence[float], share: float) -> set[int]:
    best = max(p)
    return {i for i, x in enumerate(p) if x >= share * best}


def top_a(p: Sequence[float], factor: float) -> set[int]:
    best = max(p)
    return {i for i, x in enumerate(p) if x >= factor * best**2 or x == best}


def epsilon(p: Sequence[float], cutoff: float) -> set[int]:
    best = max(p)
    return {i for i, x in enumerate(p) if x >= cutoff * 1e-4 or x == best}


def eta(p: Sequence[float], cutoff: float) -> set[int]:
    least = cutoff * 1e-4
    least = min(least, math.sqrt(least) * math.exp(-entropy(p)))
    best = max(p)
    return {i for i, x in enumerate(p) if x >= least or x == best}


def typical(p: Sequence[float], mass: float) -> set[int]:
    expected = entropy(p)
    order = sorted(range(len(p)), key=lambda i: (abs(-math.log(p[i]) - expected), i))
    return fewest_reaching(order, p, mass)


def tail_free(p: Sequence[float], share: float) -> set[int]:
    order = best_first(p)
    falling = [*(p[i] for i in order), 0.0, 0.0]
    slopes = [a - b for a, b in itertools.pairwise(falling)]
    bends = [abs(a - b) for a, b in itertools.pairwise(slopes)]
    total = math.fsum(bends)
    kept, reached = {order[0]}, 0.0
    for i, bend in zip(order[1:], bends, strict=False):
        reached += bend / total
        if reached > share:
            break
        kept.add(i)
    return kept


def n_sigma(logits: Sequence[float], number: float) -> set[int]:
    mean = math.fsum(logits) / len(logits)
    sigma = math.sqrt(math.fsum((x - mean) ** 2 for x in logits) / len(logits))
    least = max(logits) - number * sigma
    return {i for i, x in enumerate(logits) if x >= least}


def mirostat(p: Sequence[float], mu: float) -> set[int]:
    best = max(p)
    return {i for i, x in enumerate(p) if -math.log2(x) <= mu or x == best}


def xtc(p: Sequence[float], threshold: float) -> set[int]:
    top = [i for i in best_first(p) if p[i] >= threshold]
    return set(range(len(p))) - set(top[:-1])


def suffix_match_length(tokens: Sequence[int], end: int, breakers: frozenset[int]) -> int:
    """How many tokens up to and with `end` equal the last tokens of the sequence."""
    length = 0
    while length <= end:
        token = tokens[end - length]
        if token != tokens[len(tokens) - 1 - length] or token in breakers:
            break
        length += 1
    return length
