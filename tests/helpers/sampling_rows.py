"""Rows for the samplers, and the distribution a sampler draws from."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tgwui_k8s.contract import SampledToken, Sampler, SamplingRow
from tgwui_k8s.engine.sampler import NumpySampler
from tgwui_k8s.sampling import SamplingParams


def make_row(
    prompt: Sequence[int] = (),
    output: Sequence[int] = (),
    *,
    eos: Sequence[int] = (),
    choice: int = 0,
    allowed: Any = None,
    **params: Any,
) -> SamplingRow:
    """A row with these tokens and parameters."""
    return SamplingRow(
        params=SamplingParams(max_tokens=1000, **params),
        eos_token_ids=tuple(eos),
        prompt_token_ids=tuple(prompt),
        output_token_ids=list(output),
        choice=choice,
        allowed_token_ids=allowed,
    )


def sample_one(
    logits: Sequence[float] | NDArray[Any], row: SamplingRow, sampler: Sampler | None = None
) -> SampledToken:
    """One step of one row."""
    one = np.asarray(logits, np.float32)[None]
    return (sampler or NumpySampler()).sample(one, [row], [0], [None])[0]


def probabilities(
    logits: Sequence[float] | NDArray[Any], prompt: Sequence[int] = (), **rest: Any
) -> dict[int, float]:
    """What is left to draw from after all samplers: token id to probability, ids ascending."""
    row = make_row(prompt, logprobs=len(logits), logprobs_after_sampling=True, **rest)
    logprobs = sample_one(logits, row).logprobs
    assert logprobs is not None
    pairs = zip(logprobs.token_ids, logprobs.logprobs, strict=True)
    return dict(sorted((token_id, math.exp(value)) for token_id, value in pairs))


def random_logits(seed: int, *shape: int, scale: float = 2.0) -> NDArray[np.float32]:
    """Normally distributed float32 logits."""
    return np.random.default_rng(seed).normal(0.0, scale, shape).astype(np.float32)
