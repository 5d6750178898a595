"""The library's own configuration of a Llama, made from Transformers' one."""

from __future__ import annotations

from typing import Any


class LlamaConfig:
    """The fields that the model uses. There is no `pad_token_id` and no `head_dim`."""

    model_type = "llama"

    def __init__(self, config: Any, n_positions: int, amp: str, tp_degree: int) -> None:
        self.bos_token_id = config.bos_token_id
        self.eos_token_id = config.eos_token_id
        self.hidden_size = config.hidden_size
        self.intermediate_size = config.intermediate_size
        self.max_position_embeddings = config.max_position_embeddings
        self.num_attention_heads = config.num_attention_heads
        self.num_hidden_layers = config.num_hidden_layers
        self.num_key_value_heads = config.num_key_value_heads
        self.rms_norm_eps = config.rms_norm_eps
        self.vocab_size = config.vocab_size
        self.rope_theta, self.rope_scaling = _rope(config)
        self.n_positions, self.amp, self.tp_degree = n_positions, amp, tp_degree


class MistralConfig(LlamaConfig):
    """The same with a sliding window."""

    model_type = "mistral"

    def __init__(self, config: Any, n_positions: int, amp: str, tp_degree: int) -> None:
        super().__init__(config, n_positions, amp, tp_degree)
        self.sliding_window = config.sliding_window


def _rope(config: Any) -> tuple[float, dict[str, Any] | None]:
    """Base and scaling, from either generation of Transformers. ValueError: unknown scaling."""
    fields = dict(getattr(config, "rope_parameters", None) or {})
    fields.update(getattr(config, "rope_scaling", None) or {})
    theta = fields.pop("rope_theta", None) or getattr(config, "rope_theta", 10000.0)
    kind = fields.get("rope_type", fields.get("type", "default"))
    if kind == "default":
        return theta, None
    if kind != "llama3":
        raise ValueError(f"rope_scaling type {kind} is not supported; default and llama3 are")
    return theta, fields
