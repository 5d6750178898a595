"""Decoders on the CPU with one key-value cache: what the compiled graphs would compute."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch.nn.functional import embedding, rms_norm, silu


@dataclass(frozen=True)
class Step:
    """One call of a graph. `rows` are cache rows; all tensors but `last` are (rows, width)."""

    ids: torch.Tensor
    positions: torch.Tensor
    """Cache position that each token is written to."""
    first: torch.Tensor
    """(rows,): the first cache position that may be attended, the start of the real tokens."""
    rows: torch.Tensor
    last: torch.Tensor
    """(rows,): the column whose logits are wanted."""


@dataclass(frozen=True)
class LlamaShape:
    """The shape of a Llama or Mistral; head size is hidden size over heads."""

    hidden_size: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    rms_norm_eps: float
    rope_theta: float
    rope_scaling: Mapping[str, Any] | None = None
    sliding_window: int | None = None
    head_size: int = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "head_size", self.hidden_size // self.num_heads)


class LlamaDecoder:
    """Llama's arithmetic on a cache of (layers, rows, positions, key-value heads, head size)."""

    def __init__(
        self,
        shape: LlamaShape,
        weights: dict[str, torch.Tensor],
        num_rows: int,
        num_positions: int,
    ) -> None:
        self._shape = shape
        self.weights = weights
        self._inverse_frequencies = _inverse_frequencies(shape)
        cache_shape = (
            shape.num_layers,
            num_rows,
            num_positions,
            shape.num_kv_heads,
            shape.head_size,
        )
        dtype = weights["model.embed_tokens.weight"].dtype
        self._keys = torch.zeros(cache_shape, dtype=dtype)
        self._values = torch.zeros(cache_shape, dtype=dtype)

    def reset(self) -> None:
        """Forget every row."""
        self._keys.zero_()
        self._values.zero_()

    def step(self, step: Step) -> torch.Tensor:
        """Write keys and values, and return float32 logits (rows, vocab). IndexError: bad id."""
        weights = self.weights
        hidden = embedding(step.ids, weights["model.embed_tokens.weight"])
        rotation = self._rotation((step.positions - step.first[:, None]).clamp(min=0))
        mask = self._mask(step)
        for layer in range(self._shape.num_layers):
            name = f"model.layers.{layer}"
            normed = self._norm(hidden, f"{name}.input_layernorm.weight")
            hidden = hidden + self._attend(layer, normed, step, rotation, mask)
            normed = self._norm(hidden, f"{name}.post_attention_layernorm.weight")
            gate = silu(normed @ weights[f"{name}.mlp.gate_proj.weight"].T)
            up = normed @ weights[f"{name}.mlp.up_proj.weight"].T
            hidden = hidden + (gate * up) @ weights[f"{name}.mlp.down_proj.weight"].T
        wanted = self._norm(hidden, "model.norm.weight")[torch.arange(len(hidden)), step.last]
        head = weights.get("lm_head.weight", weights["model.embed_tokens.weight"])
        return (wanted @ head.T).float()

    def _attend(
        self,
        layer: int,
        hidden: torch.Tensor,
        step: Step,
        rotation: tuple[torch.Tensor, torch.Tensor],
        mask: torch.Tensor,
    ) -> torch.Tensor:
        shape, name = self._shape, f"model.layers.{layer}.self_attn"
        rows, width = step.ids.shape

        def project(part: str, heads: int) -> torch.Tensor:
            projected = hidden @ self.weights[f"{name}.{part}_proj.weight"].T
            return projected.view(rows, width, heads, shape.head_size)

        queries = _rotate(project("q", shape.num_heads), *rotation)
        where = (step.rows[:, None].expand(rows, width), step.positions)
        self._keys[layer][where] = _rotate(project("k", shape.num_kv_heads), *rotation)
        self._values[layer][where] = project("v", shape.num_kv_heads)
        repeats = shape.num_heads // shape.num_kv_heads
        keys = self._keys[layer][step.rows].repeat_interleave(repeats, dim=2)
        values = self._values[layer][step.rows].repeat_interleave(repeats, dim=2)
        scores = torch.einsum("rqhd,rkhd->rhqk", queries, keys) / math.sqrt(shape.head_size)
        scores = scores.float().masked_fill(~mask[:, None], torch.finfo(torch.float32).min)
        weighted = scores.softmax(dim=-1).to(values.dtype)
        mixed = torch.einsum("rhqk,rkhd->rqhd", weighted, values).reshape(rows, width, -1)
        return mixed @ self.weights[f"{name}.o_proj.weight"].T

    def _norm(self, hidden: torch.Tensor, name: str) -> torch.Tensor:
        weight = self.weights[name]
        normed = rms_norm(hidden.float(), weight.shape, eps=self._shape.rms_norm_eps)
        return weight * normed.to(hidden.dtype)

    def _rotation(self, positions: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        angles = positions[..., None].float() * self._inverse_frequencies
        angles = torch.cat((angles, angles), dim=-1)[:, :, None]
        dtype = self._keys.dtype
        return angles.cos().to(dtype), angles.sin().to(dtype)

    def _mask(self, step: Step) -> torch.Tensor:
        """(rows, queries, cache positions): true where a query sees."""
        keys = torch.arange(self._keys.shape[2])
        queries = step.positions[..., None]
        seen = (keys <= queries) & (keys >= step.first[:, None, None])
        if self._shape.sliding_window is not None:
            seen &= keys > queries - self._shape.sliding_window
        return seen


class WholePrefixDecoder:
    """Any Transformers model, run over a row's whole text in every step: slow, and exact.

    `run(ids, attention_mask) -> logits` is called with what a row holds from its first position
    up to the last one written.
    """

    def __init__(
        self,
        run: Callable[[torch.Tensor, torch.Tensor], torch.Tensor],
        num_rows: int,
        num_positions: int,
    ) -> None:
        self._run = run
        self._ids = torch.zeros((num_rows, num_positions), dtype=torch.int64)

    def reset(self) -> None:
        """Forget every row."""
        self._ids.zero_()

    def step(self, step: Step) -> torch.Tensor:
        """Remember the tokens, and return float32 logits (rows, vocab)."""
        self._ids[step.rows[:, None], step.positions] = step.ids
        wanted = step.positions.gather(1, step.last[:, None])[:, 0]
        length = int(wanted.max()) + 1
        seen = (torch.arange(length) >= step.first[:, None]).long()
        logits = self._run(self._ids[step.rows, :length], seen)
        return logits[torch.arange(len(step.rows)), wanted].float()


def _rotate(heads: torch.Tensor, cosine: torch.Tensor, sine: torch.Tensor) -> torch.Tensor:
    first, second = heads.chunk(2, dim=-1)
    return heads * cosine + torch.cat((-second, first), dim=-1) * sine


def _inverse_frequencies(shape: LlamaShape) -> torch.Tensor:
    exponents = torch.arange(0, shape.head_size, 2).float() / shape.head_size
    frequencies = 1.0 / shape.rope_theta**exponents
    scaling = shape.rope_scaling
    if scaling is None:
        return frequencies
    wavelengths = 2 * math.pi / frequencies
    low, high = scaling["low_freq_factor"], scaling["high_freq_factor"]
    cycles = scaling["original_max_position_embeddings"] / wavelengths
    kept = ((cycles - low) / (high - low)).clamp(0, 1)
    return kept * frequencies + (1 - kept) * frequencies / scaling["factor"]
