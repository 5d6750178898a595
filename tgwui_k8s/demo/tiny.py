"""Tiny random checkpoints in Hugging Face's format, for tests: every architecture in a megabyte.

Weights are random but scaled so that logits are well separated and greedy text does not fall into
a loop at once: a wrong position, mask or cache entry changes the tokens. Biases, norm weights and
attention sinks are random too, so that forgetting one shows.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any, Literal

import torch
from transformers import AutoConfig, AutoModelForCausalLM, GenerationConfig, PreTrainedModel

from tgwui_k8s.demo.tiny_tokenizer import (
    BOS_TOKEN_ID,
    EOS_TOKEN_ID,
    PAD_TOKEN_ID,
    VOCAB_SIZE,
    write_tokenizer,
)

WeightFormat = Literal["safetensors", "sharded", "bin"]

_LAYERS = 4
_COMMON: dict[str, Any] = {
    "vocab_size": VOCAB_SIZE,
    "hidden_size": 64,
    "num_hidden_layers": _LAYERS,
    "num_attention_heads": 4,
    "max_position_embeddings": 256,
    "bos_token_id": BOS_TOKEN_ID,
    "eos_token_id": EOS_TOKEN_ID,
    "pad_token_id": PAD_TOKEN_ID,
}
_GROUPED: dict[str, Any] = {"intermediate_size": 128, "num_key_value_heads": 2}
_HYBRID = {"layer_types": ["sliding_attention", "full_attention"] * (_LAYERS // 2)}

ARCHITECTURES: dict[str, dict[str, Any]] = {
    "llama": _GROUPED,
    "mistral": {**_GROUPED, "sliding_window": 24},
    "qwen2": {**_GROUPED},
    "qwen3": {**_GROUPED, "head_dim": 32, "tie_word_embeddings": True},
    "gemma": {**_GROUPED, "head_dim": 32, "num_key_value_heads": 1},
    "gemma2": {
        **_GROUPED,
        **_HYBRID,
        "head_dim": 32,
        "sliding_window": 24,
        "query_pre_attn_scalar": 32,
        "attn_logit_softcapping": 5.0,
        "final_logit_softcapping": 30.0,
    },
    "gemma3_text": {
        **_GROUPED,
        **_HYBRID,
        "head_dim": 32,
        "sliding_window": 24,
        "query_pre_attn_scalar": 32,
    },
    "phi": {"intermediate_size": 128},
    "phi3": {**_GROUPED, "sliding_window": 24},
    "gpt2": {},
    "gpt_neox": {"intermediate_size": 128},
    "opt": {"ffn_dim": 128, "word_embed_proj_dim": 64},
    "gpt_oss": {
        **_GROUPED,
        **_HYBRID,
        "head_dim": 32,
        "sliding_window": 24,
        "num_local_experts": 4,
        "num_experts_per_tok": 2,
        "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0},
    },
    "qwen3_moe": {
        **_GROUPED,
        "head_dim": 32,
        "num_experts": 4,
        "num_experts_per_tok": 2,
        "moe_intermediate_size": 64,
    },
    "deepseek_v2": {
        "intermediate_size": 128,
        "num_key_value_heads": 4,
        "first_k_dense_replace": _LAYERS,
        "q_lora_rank": None,
        "kv_lora_rank": 16,
        "qk_nope_head_dim": 16,
        "qk_rope_head_dim": 8,
        "v_head_dim": 16,
    },
    # Refused by the Transformers loader: attention of their own, or used in a way of their own.
    "bloom": {},
    "falcon": {"new_decoder_architecture": False, "alibi": True},
    "mpt": {},
    "gptj": {"rotary_dim": 16},
    "llama4_text": {**_GROUPED, "intermediate_size_mlp": 128, "num_local_experts": 2},
    "diffllama": _GROUPED,
    "doge": _GROUPED,
    "nemotron": _GROUPED,
    "phimoe": {**_GROUPED, "sliding_window": 24, "num_local_experts": 2},
}
"""Hugging Face's `model_type` to what its tiny configuration has beside the common fields."""


# What a layer adds must outweigh the embedding of the token it stands on: with tied embeddings the
# model would only repeat its last token otherwise. Gemma's norms behind a branch undo any gain
# before them, so they carry it themselves.
_BRANCH_GAIN = 6.0
_BRANCH_ENDS = ("o_proj", "out_proj", "c_proj", "dense", "down_proj", "fc2", "dense_4h_to_h")
_POST_NORM_GAIN = 20.0
_POST_NORM = "post_feedforward_layernorm"
_TRANSPOSED = ("c_attn", "c_proj", "c_fc")


def make_checkpoint(
    folder: Path,
    architecture: str,
    *,
    weight_format: WeightFormat = "safetensors",
    dtype: str = "float32",
    seed: int = 0,
    **overrides: Any,
) -> Path:
    """Write a random checkpoint with tokenizer and chat template into `folder`; returns it.

    `architecture` is a key of `ARCHITECTURES`, `overrides` are fields of its configuration
    (`tie_word_embeddings=True`, `rope_parameters={...}`, `num_hidden_layers=1`). Equal arguments
    write equal weights. "sharded" means several safetensors files and an index.
    """
    fields = {**_COMMON, **ARCHITECTURES[architecture], **overrides}
    config = AutoConfig.for_model(architecture, **fields)
    model = AutoModelForCausalLM.from_config(config).float()
    randomize(model, seed)
    model.to(getattr(torch, dtype))
    model.generation_config = GenerationConfig(
        bos_token_id=BOS_TOKEN_ID, eos_token_id=config.eos_token_id, pad_token_id=PAD_TOKEN_ID
    )
    folder.mkdir(parents=True, exist_ok=True)
    _save(model, folder, weight_format)
    write_tokenizer(folder, model_max_length=config.max_position_embeddings)
    return folder


def randomize(model: PreTrainedModel, seed: int) -> None:
    """Give every parameter of the model seeded random values, scaled by its fan-in."""
    generator = torch.Generator().manual_seed(seed)
    embeddings = (model.get_input_embeddings().weight, model.get_output_embeddings().weight)
    # Sorted, so that the values do not depend on the order in which modules were defined.
    for name, parameter in sorted(model.named_parameters(remove_duplicate=True)):
        noise = torch.randn(parameter.shape, generator=generator)
        layer = name.removesuffix(".weight")
        with torch.no_grad():
            if parameter.ndim == 1:
                gain = _POST_NORM_GAIN if layer.endswith(_POST_NORM) else 0.0
                parameter.add_(gain + 0.2 * noise)
            elif any(parameter is embedding for embedding in embeddings):
                parameter.copy_(noise * 3.0 / math.sqrt(parameter.shape[-1]))
            else:
                fan_in = parameter.shape[0 if layer.endswith(_TRANSPOSED) else -1]
                gain = _BRANCH_GAIN if layer.endswith(_BRANCH_ENDS) else 2.0
                parameter.copy_(noise * gain / math.sqrt(fan_in))


def _save(model: PreTrainedModel, folder: Path, weight_format: WeightFormat) -> None:
    if weight_format == "bin":
        model.config.architectures = [type(model).__name__]
        model.config.save_pretrained(folder)
        model.generation_config.save_pretrained(folder)
        torch.save(model.state_dict(), folder / "pytorch_model.bin")
        return
    num_bytes = sum(parameter.nbytes for parameter in model.parameters())
    max_shard_size = num_bytes // 3 if weight_format == "sharded" else 2 * num_bytes
    model.save_pretrained(folder, max_shard_size=max_shard_size)
