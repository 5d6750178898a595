"""A model's shape as the Neuron compiler sees it: heads padded to the cores, bytes per core.

transformers-neuronx pads query heads up to a multiple of the tensor-parallel degree, and copies
key-value heads until there is one per core. Both cost memory, and copied heads cost it for every
position of the KV cache.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from tgwui_k8s.errors import UnsupportedModelError

ELEMENT_BYTES = {"f32": 4, "f16": 2, "bf16": 2}
"""Bytes of a number, by the library's names of types."""

_NAMES: dict[str, tuple[str, ...]] = {
    "layers": ("num_hidden_layers", "n_layer"),
    "hidden": ("hidden_size", "n_embd"),
    "heads": ("num_attention_heads", "n_head"),
    "vocab": ("vocab_size",),
}
"""A field of ours, and what configurations call it."""

_UNGATED = frozenset({"gpt2", "gptj", "gpt_neox", "opt", "bloom"})
"""Models whose MLP has two matrices instead of three."""


@dataclass(frozen=True, kw_only=True)
class ModelShape:
    """Sizes of a decoder. `experts` is 1 for a dense model."""

    layers: int
    hidden: int
    heads: int
    kv_heads: int
    head_dim: int
    intermediate: int
    vocab: int
    mlp_matrices: int = 3
    experts: int = 1

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> ModelShape:
        """Read a `config.json`. Raises `UnsupportedModelError` that names what is missing."""
        sizes = {field: _size(config, names) for field, names in _NAMES.items()}
        intermediate = next(
            (
                config[name]
                for name in ("intermediate_size", "ffn_dim", "n_inner")
                if isinstance(config.get(name), int)
            ),
            4 * sizes["hidden"],
        )
        return cls(
            **sizes,
            head_dim=config.get("head_dim") or sizes["hidden"] // sizes["heads"],
            kv_heads=config.get("num_key_value_heads") or sizes["heads"],
            intermediate=intermediate,
            mlp_matrices=2 if config.get("model_type") in _UNGATED else 3,
            experts=config.get("num_local_experts") or 1,
        )

    @property
    def num_parameters(self) -> int:
        """All weights, unpadded; embedding and head counted apart."""
        attention = 2 * self.hidden * self.head_dim * (self.heads + self.kv_heads)
        mlp = self.mlp_matrices * self.hidden * self.intermediate * self.experts
        return self.layers * (attention + mlp) + 2 * self.vocab * self.hidden

    def padded_heads(self, tp_degree: int) -> tuple[int, int]:
        """Query and key-value heads after padding for so many cores."""
        heads, kv_heads = self.heads, self.kv_heads
        if kv_heads % tp_degree == 0:
            return heads, kv_heads
        if heads != kv_heads and tp_degree % kv_heads == 0:
            queries_per_copy = -(-(heads // kv_heads) // (tp_degree // kv_heads))
            return tp_degree * queries_per_copy, tp_degree
        padded = _round_up(heads, tp_degree)
        return padded, padded

    def core_weight_bytes(self, tp_degree: int, amp: str, *, quantized: bool = False) -> int:
        """Weights on one core. The embedding stays on the host."""
        heads, kv_heads = self.padded_heads(tp_degree)
        attention = 2 * self.hidden * self.head_dim * (heads + kv_heads)
        mlp = self.mlp_matrices * self.hidden * _round_up(self.intermediate, tp_degree)
        layers = self.layers * (attention + mlp * self.experts)
        head = self.hidden * _round_up(self.vocab, tp_degree)
        width = ELEMENT_BYTES[amp]
        return -(-(layers * (1 if quantized else width) + head * width) // tp_degree)

    def core_position_bytes(self, tp_degree: int, amp: str) -> int:
        """KV cache on one core for one position of one sequence."""
        _, kv_heads = self.padded_heads(tp_degree)
        width = ELEMENT_BYTES[amp]
        return 2 * self.layers * -(-kv_heads // tp_degree) * self.head_dim * width


def _size(config: Mapping[str, Any], names: tuple[str, ...]) -> int:
    for name in names:
        value = config.get(name)
        if isinstance(value, int) and value > 0:
            return value
    raise UnsupportedModelError(f"config.json has no usable {names[0]}")


def _round_up(number: int, divisor: int) -> int:
    return -(-number // divisor) * divisor


def _llama(
    layers: int, hidden: int, heads: int, kv_heads: int, intermediate: int, vocab: int
) -> ModelShape:
    return ModelShape(
        layers=layers,
        hidden=hidden,
        heads=heads,
        kv_heads=kv_heads,
        head_dim=hidden // heads,
        intermediate=intermediate,
        vocab=vocab,
    )


KNOWN_SHAPES: dict[str, ModelShape] = {
    "Llama-2-7B": _llama(32, 4096, 32, 32, 11008, 32000),
    "Llama-2-13B": _llama(40, 5120, 40, 40, 13824, 32000),
    "Llama-2-70B": _llama(80, 8192, 64, 8, 28672, 32000),
    "Llama-3-8B": _llama(32, 4096, 32, 8, 14336, 128256),
    "Llama-3-70B": _llama(80, 8192, 64, 8, 28672, 128256),
}
"""Models that `tgwui-k8s neuron plan` knows without their files, as published."""
