"""Buckets: the lengths that graphs are compiled for."""

from __future__ import annotations

from collections.abc import Sequence


def token_sizes(n_positions: int | Sequence[int]) -> list[int]:
    """128, 256, ... doubling, the last one `n_positions` itself; a list is taken as it is."""
    if not isinstance(n_positions, int):
        return sorted(n_positions)
    sizes, size = [], 128
    while size < n_positions:
        sizes.append(size)
        size *= 2
    return [*sizes, n_positions]


def context_sizes(estimate: int | Sequence[int] | None, token_buckets: Sequence[int]) -> list[int]:
    """Half of every token bucket by default; 0 means none. Raises ValueError for []."""
    if estimate is None:
        return [size // 2 for size in token_buckets]
    if isinstance(estimate, int):
        return [estimate] if estimate else []
    if not estimate:
        raise ValueError("context_length_estimate cannot be an empty list")
    return sorted(estimate)


def batch_sizes(batch_size: int | Sequence[int]) -> list[int]:
    """One or several. Raises TypeError for anything else."""
    if isinstance(batch_size, int):
        return [batch_size]
    if isinstance(batch_size, list):
        return sorted(batch_size)
    raise TypeError("batch_size must be list of ints or int type")


def find_bucket(buckets: Sequence[int], length: int) -> int:
    """The smallest bucket that holds `length`. StopIteration, bare, where none does."""
    return next(bucket for bucket in buckets if bucket >= length)
