"""Our attention as Transformers' models see it, and a probe of what they ask of it.

Transformers hands a registered attention function whatever the architecture needs as keyword
arguments, and builds no mask for a name that its mask registry does not know. The object that
holds the KV cache travels through the model's `forward(**kwargs)`, not through a global.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

import torch
from transformers import AttentionInterface

from tgwui_k8s.errors import UnsupportedModelError
from tgwui_k8s.runtime.kv_layout import LayerShape

ATTENTION_NAME = "tgwui_paged"
"""What `attn_implementation` must be."""

_HONOURED = frozenset({"scaling", "softcap", "s_aux", "sliding_window"})
_WITHOUT_EFFECT = frozenset({"position_ids", "position_embeddings", "cache_position", "is_causal"})
"""Told to every attention function; `is_causal` must not be False."""


class AttentionBackend(Protocol):
    """What stands behind the registered function; see `PagedAttention.attend` for the shapes."""

    def attend(
        self,
        layer: int,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        options: Mapping[str, Any],
    ) -> torch.Tensor:
        """Attention of one layer for all tokens of the step."""
        ...


def register_attention() -> None:
    """Make `ATTENTION_NAME` known to Transformers; again is harmless."""
    AttentionInterface.register(ATTENTION_NAME, _forward)


def _forward(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    *,
    paged_attention: AttentionBackend,
    **options: Any,
) -> tuple[torch.Tensor, None]:
    """Transformers' shapes [1, heads, tokens, dim] in, [1, tokens, heads, dim] out."""
    query, key, value = (tensor[0].transpose(0, 1) for tensor in (query, key, value))
    layer: Any = module.layer_idx
    options["attention_mask"] = attention_mask
    options.setdefault("is_causal", getattr(module, "is_causal", True))
    output = paged_attention.attend(layer, query, key, value, options)
    return output.unsqueeze(0), None


class LayerProbe:
    """Records what every layer asks for, in one forward without a KV cache.

    Asking the model itself needs no knowledge of its configuration, and shows what we would
    otherwise silently ignore. Its `attend` raises `UnsupportedModelError` for that.
    """

    def __init__(self, architecture: str) -> None:
        self.layers: dict[int, LayerShape] = {}
        self._architecture = architecture

    def attend(
        self,
        layer: int,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        options: Mapping[str, Any],
    ) -> torch.Tensor:
        """Note the layer's shape; the output is zeros."""
        ignored = sorted(
            name
            for name, option in options.items()
            if name not in _HONOURED | _WITHOUT_EFFECT and _has_effect(option)
        )
        if options.get("is_causal") is False:
            ignored.append("is_causal")
        if ignored:
            raise UnsupportedModelError(
                f"{self._architecture} needs attention features that this loader does not have "
                f"({', '.join(ignored)}); use the vLLM loader for it"
            )
        if layer in self.layers:
            raise UnsupportedModelError(
                f"{self._architecture} runs attention layer {layer} more than once per token, "
                "which this loader does not support; use the vLLM loader for it"
            )
        self.layers[layer] = LayerShape(
            num_kv_heads=key.shape[1],
            key_dim=key.shape[2],
            value_dim=value.shape[2],
            window=options.get("sliding_window"),
            queries_per_key=query.shape[1] // key.shape[1],
        )
        return query.new_zeros(query.shape[0], query.shape[1], value.shape[2])


def _has_effect(option: Any) -> bool:
    """None, False and 0 switch a feature off."""
    return isinstance(option, torch.Tensor) or bool(option)
