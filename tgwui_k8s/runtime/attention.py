"""Scaled dot-product attention with what some architectures add to it.

Soft-capped scores (Gemma 2) and attention sinks (gpt-oss) are not known to PyTorch's fused
kernels; they are computed in plain operations here, like values of another width than the keys
(DeepSeek). Everything else is handed to the kernels.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch.nn.functional import scaled_dot_product_attention

_MAX_SCORES = 1 << 24
"""Scores held at once by the plain operations."""


@dataclass(frozen=True, slots=True)
class Scoring:
    """How dot products become weights.

    `sinks` [num_heads] are scores without a value: they take their share of every query's weight.
    """

    scaling: float
    softcap: float | None = None
    sinks: torch.Tensor | None = None

    @classmethod
    def from_options(cls, options: Mapping[str, Any], head_dim: int) -> Scoring:
        """From the arguments that Transformers' models give to an attention function."""
        scaling = options.get("scaling")
        return cls(
            scaling=1 / math.sqrt(head_dim) if scaling is None else scaling,
            softcap=options.get("softcap"),
            sinks=options.get("s_aux"),
        )


def attend_decodes(
    query: torch.Tensor,
    keys: torch.Tensor,
    values: torch.Tensor,
    mask: torch.Tensor | None,
    scoring: Scoring,
) -> torch.Tensor:
    """One query per row, each over its own context.

    `query` is [rows, heads, dim], `keys` and `values` are [rows, len, kv heads, dim], `mask` is
    additive, [rows, 1, 1, len]. Returns [rows, heads, value dim].

    The query heads that share a key head stand where queries of one head would: one matrix
    product per key head, and ten times the speed on a CPU.
    """
    num_kv_heads = keys.shape[2]
    output = _attend(
        query.unflatten(1, (num_kv_heads, -1)),
        keys.transpose(1, 2),
        values.transpose(1, 2),
        mask,
        scoring,
        sinks=None if scoring.sinks is None else scoring.sinks.view(num_kv_heads, -1, 1),
    )
    return output.flatten(1, 2)


def attend_chunk(
    query: torch.Tensor,
    keys: torch.Tensor,
    values: torch.Tensor,
    mask: torch.Tensor | None,
    scoring: Scoring,
) -> torch.Tensor:
    """Queries of one sequence.

    `query` is [tokens, heads, dim], `keys` and `values` are [len, kv heads, dim], `mask` is
    additive, [tokens, len]; None means causal, with len == tokens.
    Returns [tokens, heads, value dim].
    """
    num_kv_heads = keys.shape[1]
    grouped = query.unflatten(1, (num_kv_heads, -1)).permute(1, 2, 0, 3)
    num_groups = grouped.shape[1]
    output = _attend(
        grouped,
        keys.transpose(0, 1).unsqueeze(1).expand(-1, num_groups, -1, -1),
        values.transpose(0, 1).unsqueeze(1).expand(-1, num_groups, -1, -1),
        mask,
        scoring,
        sinks=None if scoring.sinks is None else scoring.sinks.view(num_kv_heads, -1, 1, 1),
        is_causal=mask is None,
    )
    return output.permute(2, 0, 1, 3).flatten(1, 2)


def _attend(
    query: torch.Tensor,
    keys: torch.Tensor,
    values: torch.Tensor,
    mask: torch.Tensor | None,
    scoring: Scoring,
    *,
    sinks: torch.Tensor | None,
    is_causal: bool = False,
) -> torch.Tensor:
    """Attention over the last two dimensions of [batch, heads, tokens, dim].

    `mask` and `sinks` broadcast to [batch, heads, tokens, len or 1].
    """
    is_fused = query.shape[-1] == values.shape[-1]  # otherwise the kernels hold all scores at once
    if is_fused and scoring.softcap is None and sinks is None:
        return scaled_dot_product_attention(
            query, keys, values, attn_mask=mask, is_causal=is_causal, scale=scoring.scaling
        )
    if is_causal:
        visible = torch.ones(query.shape[2], keys.shape[2], dtype=torch.bool, device=query.device)
        mask = torch.zeros_like(visible, dtype=query.dtype)
        mask.masked_fill_(visible.tril_().logical_not_(), float("-inf"))
    if sinks is not None:
        sinks = sinks.to(query).expand(*query.shape[:-1], 1)
    batch, num_heads, num_tokens, _ = query.shape
    size = max(1, _MAX_SCORES // (batch * num_heads * keys.shape[2]))
    parts = []
    for start in range(0, num_tokens, size):
        part = slice(start, start + size)
        part_mask = mask
        if mask is not None and mask.shape[-2] == num_tokens:
            part_mask = mask[..., part, :]
        part_sinks = None if sinks is None else sinks[:, :, part]
        parts.append(
            _attend_plainly(query[:, :, part], keys, values, part_mask, scoring, part_sinks)
        )
    return parts[0] if len(parts) == 1 else torch.cat(parts, dim=2)


def _attend_plainly(
    query: torch.Tensor,
    keys: torch.Tensor,
    values: torch.Tensor,
    mask: torch.Tensor | None,
    scoring: Scoring,
    sinks: torch.Tensor | None,
) -> torch.Tensor:
    scores = torch.matmul(query, keys.transpose(-1, -2)) * scoring.scaling
    if scoring.softcap is not None:
        scores = torch.tanh(scores / scoring.softcap) * scoring.softcap
    if mask is not None:
        scores = scores + mask
    if sinks is not None:
        # One more column, whose weight is dropped with it.
        scores = torch.cat([scores, sinks], dim=-1)
    weights = scores.softmax(dim=-1, dtype=torch.float32).to(query.dtype)
    return torch.matmul(weights[..., : keys.shape[-2]], values)
