"""Moving the elements that count to the front, so that later work is small."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from tgwui_k8s.runtime.samplers.kernels import Candidates


def pack(values: NDArray[np.float32], wanted: NDArray[np.bool_]) -> NDArray[np.float32]:
    """The wanted values of each row in their order, padded with 0 to equal length (1 at least)."""
    rows, columns, slots, width = _places(wanted)
    packed = np.zeros((len(values), max(width, 1)), np.float32)
    packed[rows, slots] = values[rows, columns]
    return packed


def compact(candidates: Candidates) -> Candidates:
    """Leave removed candidates out, where that at least halves the columns."""
    logits = candidates.logits
    present = logits > -np.inf
    num_rows, num_columns = logits.shape
    widest = int(np.count_nonzero(present, axis=1).max())
    if 2 * widest > num_columns or widest == 0:
        return candidates
    rows, columns, slots, width = _places(present)
    kept = np.full((num_rows, width), -np.inf, np.float32)
    # Padding sorts behind every token.
    token_ids = np.full((num_rows, width), np.iinfo(np.int64).max, np.int64)
    kept[rows, slots] = logits[rows, columns]
    if candidates.token_ids is None:
        token_ids[rows, slots] = columns
    else:
        token_ids[rows, slots] = candidates.token_ids[rows, columns]
    return Candidates(kept, token_ids)


def _places(wanted: NDArray[np.bool_]) -> tuple[Any, Any, Any, int]:
    """Row, column and place within its row of everything wanted, and the largest number per row."""
    counts = np.count_nonzero(wanted, axis=1)
    flat = np.flatnonzero(wanted)
    rows, columns = np.divmod(flat, wanted.shape[1])
    firsts = np.cumsum(counts) - counts
    return rows, columns, np.arange(len(flat)) - np.repeat(firsts, counts), int(counts.max())
