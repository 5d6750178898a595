"""Leaving removed candidates out, so that later work is small; finding the others again."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from tgwui_k8s.engine.samplers.distribution import count
from tgwui_k8s.runtime.samplers.kernels import PADDING, Candidates


def compact(candidates: Candidates) -> Candidates:
    """The same candidates in as few columns as they need, where that at least halves them."""
    logits = candidates.logits
    num_rows, num_columns = logits.shape
    present = logits > -np.inf
    width = int(count(present).max())
    if 2 * width > num_columns:
        return candidates
    kept = np.full((num_rows, max(width, 1)), -np.inf, np.float32)
    token_ids = np.full(kept.shape, PADDING, np.int64)
    for row in range(num_rows):
        columns = np.flatnonzero(present[row])
        kept[row, : len(columns)] = logits[row, columns]
        token_ids[row, : len(columns)] = (
            columns if candidates.token_ids is None else candidates.token_ids[row, columns]
        )
    return Candidates(kept, token_ids)


def find(
    candidates: Candidates, rows: NDArray[np.int64], token_ids: NDArray[np.int64]
) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
    """The columns of these tokens in these rows, and which of them are there at all."""
    if candidates.token_ids is None:
        return token_ids, np.ones(len(token_ids), np.bool_)
    num_rows, num_columns = candidates.token_ids.shape
    # Ascending in every row: with the row in front, ascending altogether.
    keys: NDArray[Any] = candidates.token_ids + 2 * PADDING * np.arange(num_rows)[:, None]
    wanted = token_ids + 2 * PADDING * rows
    places = np.minimum(np.searchsorted(keys.ravel(), wanted), keys.size - 1)
    return places - rows * num_columns, keys.ravel()[places] == wanted
