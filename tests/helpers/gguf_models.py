"""Makes GGUF models of Hugging Face checkpoints with the `gguf` package: what llama.cpp's own
converter does, for the few architectures that tests need.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import numpy.typing as npt
from safetensors.torch import load_file

Array = npt.NDArray[np.float32]

ARCHITECTURES = {
    "llama": gguf.MODEL_ARCH.LLAMA,
    "qwen2": gguf.MODEL_ARCH.QWEN2,
    "qwen3": gguf.MODEL_ARCH.QWEN3,
    "gemma3_text": gguf.MODEL_ARCH.GEMMA3,
}
"""Hugging Face's `model_type` to GGUF's architecture."""

TYPES = {
    "F32": (gguf.GGMLQuantizationType.F32, gguf.LlamaFileType.ALL_F32),
    "F16": (gguf.GGMLQuantizationType.F16, gguf.LlamaFileType.MOSTLY_F16),
    "BF16": (gguf.GGMLQuantizationType.BF16, gguf.LlamaFileType.MOSTLY_BF16),
    "Q8_0": (gguf.GGMLQuantizationType.Q8_0, gguf.LlamaFileType.MOSTLY_Q8_0),
    "Q4_0": (gguf.GGMLQuantizationType.Q4_0, gguf.LlamaFileType.MOSTLY_Q4_0),
}


def make_gguf(
    checkpoint: Path,
    path: Path,
    *,
    kind: str = "F32",
    split: str = "gpt-2",
    tensors_per_part: int = 0,
) -> Path:
    """Write the checkpoint in folder `checkpoint` as the GGUF file `path`; returns it.

    `kind` is a key of `TYPES`, for matrices; vectors stay F32. `split` names how the tokenizer
    cuts words (`tokenizer.ggml.pre`), which no file of the checkpoint says. With
    `tensors_per_part` the model becomes a set of files beside `path`.
    """
    config = json.loads((checkpoint / "config.json").read_text())
    architecture = ARCHITECTURES[config["model_type"]]
    writer = gguf.GGUFWriter(
        path, gguf.MODEL_ARCH_NAMES[architecture], split_max_tensors=tensors_per_part
    )
    writer.add_name(checkpoint.name)
    writer.add_file_type(TYPES[kind][1])
    _add_shape(writer, config)
    add_byte_level_tokenizer(writer, checkpoint, split)
    _add_tensors(writer, checkpoint, config, kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def add_byte_level_tokenizer(writer: gguf.GGUFWriter, checkpoint: Path, split: str) -> None:
    """Put a byte-level tokenizer.json, its special tokens and chat template into a file."""
    tokenizer = json.loads((checkpoint / "tokenizer.json").read_text())
    names = json.loads((checkpoint / "tokenizer_config.json").read_text())
    ids = dict(tokenizer["model"]["vocab"])
    types = dict.fromkeys(ids.values(), gguf.TokenType.NORMAL)
    for token in tokenizer["added_tokens"]:
        ids[token["content"]] = token["id"]
        is_special = token["special"]
        types[token["id"]] = gguf.TokenType.CONTROL if is_special else gguf.TokenType.USER_DEFINED
    by_id = {index: token for token, index in ids.items()}
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(split)
    writer.add_token_list([by_id[index] for index in range(len(by_id))])
    writer.add_token_types([types[index] for index in range(len(by_id))])
    merges = tokenizer["model"]["merges"]
    writer.add_token_merges([m if isinstance(m, str) else " ".join(m) for m in merges])
    for name, add in (
        ("bos_token", writer.add_bos_token_id),
        ("eos_token", writer.add_eos_token_id),
        ("pad_token", writer.add_pad_token_id),
    ):
        if names.get(name):
            add(ids[names[name]])
    writer.add_add_bos_token(bool(tokenizer["post_processor"]))
    template = checkpoint / "chat_template.jinja"
    source = template.read_text() if template.is_file() else names.get("chat_template")
    if source:
        writer.add_chat_template(source)


def _add_shape(writer: gguf.GGUFWriter, config: dict[str, Any]) -> None:
    heads, hidden = config["num_attention_heads"], config["hidden_size"]
    head_dim = config.get("head_dim") or hidden // heads
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(hidden)
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(heads)
    writer.add_head_count_kv(config["num_key_value_heads"])
    writer.add_key_length(head_dim)
    writer.add_value_length(head_dim)
    writer.add_rope_dimension_count(head_dim)
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    writer.add_vocab_size(config["vocab_size"])
    rope = config.get("rope_parameters") or {}
    full = rope.get("full_attention", rope)
    writer.add_rope_freq_base(full.get("rope_theta") or config.get("rope_theta", 10000.0))
    if config["model_type"] == "gemma3_text":
        writer.add_sliding_window(config["sliding_window"])


def _add_tensors(
    writer: gguf.GGUFWriter, checkpoint: Path, config: dict[str, Any], kind: str
) -> None:
    architecture = ARCHITECTURES[config["model_type"]]
    names = gguf.get_tensor_name_map(architecture, config["num_hidden_layers"])
    for file in sorted(checkpoint.glob("*.safetensors")):
        for name, tensor in load_file(file).items():
            array = _as_llama_cpp_wants(name, tensor.float().numpy(), config)
            quantization = TYPES["F32" if array.ndim == 1 else kind][0]
            data = gguf.quants.quantize(np.ascontiguousarray(array), quantization)
            writer.add_tensor(
                names.get_name(name, try_suffixes=(".weight", ".bias")),
                data,
                raw_dtype=quantization,
            )


def _as_llama_cpp_wants(name: str, array: Array, config: dict[str, Any]) -> Array:
    """Rotary halves side by side for Llama, and Gemma's norms with their one added."""
    if config["model_type"] == "llama" and ("q_proj" in name or "k_proj" in name):
        key = "num_attention_heads" if "q_proj" in name else "num_key_value_heads"
        shape = array.shape
        pairs = array.reshape(config[key], 2, shape[0] // config[key] // 2, *shape[1:])
        return pairs.swapaxes(1, 2).reshape(shape)
    if config["model_type"] == "gemma3_text" and name.endswith("norm.weight"):
        return array + 1.0
    return array
