"""`LlamaForSampling`, and Mistral's, which differs in its window."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, ClassVar

import torch
from neuron_double.decoder import LlamaDecoder, LlamaShape
from neuron_double.journal import swallow, violation
from safetensors.torch import save_file

from transformers_neuronx.base import SerializableModel
from transformers_neuronx.config import NeuronConfig
from transformers_neuronx.constants import GQA
from transformers_neuronx.llama.config import LlamaConfig
from transformers_neuronx.sample_loop import SamplingModel
from transformers_neuronx.utils import get_qkv_padding

PROJECTIONS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")


class LlamaForSampling(SerializableModel, SamplingModel):
    """Llama with static and continuous batching."""

    supports_continuous_batching: ClassVar[bool] = True
    config_class: ClassVar[type[LlamaConfig]] = LlamaConfig

    def __init__(
        self,
        config: Any,
        *,
        n_positions: int | list[int] = 2048,
        batch_size: int | list[int] = 1,
        amp: str = "f32",
        tp_degree: int = 2,
        context_length_estimate: int | list[int] | None = None,
        context_unroll: int | None = None,
        unroll: int | None = None,
        neuron_config: NeuronConfig | None = None,
        prefixed_length: int = 0,
        **kwargs: Any,
    ) -> None:
        swallow(type(self).__name__, kwargs)
        if prefixed_length:
            raise NotImplementedError("the double takes no prefixed_length")
        longest = n_positions if isinstance(n_positions, int) else max(n_positions)
        super().__init__(
            self.config_class(config, longest, amp, tp_degree),
            n_positions=n_positions,
            batch_size=batch_size,
            amp=amp,
            tp_degree=tp_degree,
            context_length_estimate=context_length_estimate,
            neuron_config=neuron_config,
            unroll=(unroll, context_unroll),
        )
        quant = self.neuron_config.quant
        if quant is not None and quant.dequant_dtype != amp:
            violation(f"dequant_dtype {quant.dequant_dtype} differs from amp {amp}")
        over_batch = self.neuron_config.group_query_attention is GQA.SHARD_OVER_BATCH
        if over_batch and any(size % tp_degree for size in self.batch_sizes):
            violation(f"GQA over batch {self.batch_sizes} does not divide by tp_degree {tp_degree}")

    def _identity(self) -> dict[str, Any]:
        return vars(self.config)

    def _make_decoder(self, weights: dict[str, torch.Tensor]) -> LlamaDecoder:
        config = self.config
        shape = LlamaShape(
            hidden_size=config.hidden_size,
            num_layers=config.num_hidden_layers,
            num_heads=config.num_attention_heads,
            num_kv_heads=config.num_key_value_heads,
            rms_norm_eps=config.rms_norm_eps,
            rope_theta=config.rope_theta,
            rope_scaling=config.rope_scaling,
            sliding_window=getattr(config, "sliding_window", None),
        )
        return LlamaDecoder(shape, weights, self.batch_sizes[-1], self.max_positions)

    def _cast(self, weights: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        weights = super()._cast(weights)
        if self.neuron_config.quant is None:
            return weights
        return {
            name: _through_int8(tensor) if name.split(".")[-2] in PROJECTIONS else tensor
            for name, tensor in weights.items()
        }

    def _memory_bytes(self) -> int:
        config, width = self.config, self.dtype_of_amp.itemsize
        heads, kv_heads = config.num_attention_heads, config.num_key_value_heads
        head_size = config.hidden_size // heads
        padded, padded_kv = get_qkv_padding(heads, kv_heads, self.tp_degree)
        per_head = 2 * config.num_hidden_layers * config.hidden_size * head_size
        padding = per_head * (padded - heads + padded_kv - kv_heads)
        stored = 1 if self.neuron_config.quant is not None else width
        positions = self.max_positions * self.batch_sizes[-1]
        cache = 2 * config.num_hidden_layers * padded_kv * head_size * positions * width
        return (self.num_parameters_read + padding) * stored + cache

    def _check_unroll(self) -> None:
        layers, (unroll, _) = self.config.num_hidden_layers, self._unroll
        if unroll and layers % unroll:
            raise ValueError(f"unroll({unroll}) does not divide num_layers({layers})")

    def _save_weights(self, folder: Path) -> None:
        weights = self._decoder.weights
        layers = self.config.num_hidden_layers
        for layer in range(layers):
            prefix = f"model.layers.{layer}."
            part = {name: tensor for name, tensor in weights.items() if name.startswith(prefix)}
            save_file(part, folder / f"decoder_layer_{layer}.safetensors")
        head = {name: t for name, t in weights.items() if not name.startswith("model.layers.")}
        save_file(head, folder / "DecoderLMHead.safetensors")
        fields = {
            "architectures": ["LlamaForCausalLM"],
            "model_type": self.config.model_type,
            **vars(self.config),
            "is_presharded_checkpoint": True,
        }
        (folder / "config.json").write_text(json.dumps(fields))


def _through_int8(weight: torch.Tensor) -> torch.Tensor:
    """What is left of a weight that was stored in eight bits, one scale per output."""
    scale = weight.float().abs().amax(dim=1, keepdim=True).clamp(min=1e-12) / 127
    return ((weight.float() / scale).round() * scale).to(weight.dtype)


class FIDLlamaForSampling(LlamaForSampling):
    """Fusion in the decoder: importable, and not imitated."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        raise NotImplementedError("the double has no FIDLlamaForSampling")
