"""Hugging Face checkpoints of Llama-shaped decoders, as the native decoder wants them.

Llama, Mistral, Qwen2 and Qwen3: pre-norm with RMSNorm, rotary embeddings, grouped-query attention
(with biases in Qwen2, with norms of queries and keys in Qwen3), SwiGLU. What differs from that
in any way is refused here, so that it runs through Transformers instead. NumPy only.
"""

from __future__ import annotations

import mmap
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from tgwui_k8s.errors import BrokenModelError, UnsupportedModelError
from tgwui_k8s.runtime.native import INT8_GROUP, DecoderShape
from tgwui_k8s.storage.safetensors_file import TensorEntry

ARCHITECTURES = {
    "LlamaForCausalLM": "llama",
    "MistralForCausalLM": "mistral",
    "Qwen2ForCausalLM": "qwen2",
    "Qwen3ForCausalLM": "qwen3",
}
ITEM_TYPES = {"BF16": np.uint16, "F16": np.float16, "F32": np.float32}


@dataclass(frozen=True, kw_only=True)
class LlamaCheckpoint:
    """A checkpoint that the native decoder can run."""

    shape: DecoderShape
    windows: tuple[int | None, ...]
    is_tied: bool
    has_qkv_bias: bool
    has_head_norms: bool

    @classmethod
    def read(cls, config: Mapping[str, Any], tensors: Mapping[str, TensorEntry]) -> LlamaCheckpoint:
        """Check a configuration and the tensors that belong to it.

        Raises `UnsupportedModelError` for anything but a plain Llama shape and
        `BrokenModelError` where tensors contradict the configuration.
        """
        architecture = (config.get("architectures") or [""])[0]
        family = ARCHITECTURES.get(architecture)
        if family is None:
            raise UnsupportedModelError(f"the native decoder does not know {architecture!r}")
        for key, plain in (
            ("hidden_act", "silu"),
            ("attention_bias", False),
            ("mlp_bias", False),
            ("pretraining_tp", 1),
        ):
            if config.get(key, plain) not in (plain, None):
                raise UnsupportedModelError(f"the native decoder has no {key}={config[key]!r}")
        heads = config["num_attention_heads"]
        head_dim = config.get("head_dim") or config["hidden_size"] // heads
        shape = DecoderShape(
            hidden=config["hidden_size"],
            layers=config["num_hidden_layers"],
            heads=heads,
            kv_heads=config.get("num_key_value_heads") or heads,
            head_dim=head_dim,
            ffn=config["intermediate_size"],
            vocab=config["vocab_size"],
            norm_eps=config.get("rms_norm_eps", 1e-6),
            attention_scale=head_dim**-0.5,
        )
        reason = shape.why_unsupported()
        if reason is not None:
            raise UnsupportedModelError(f"the native decoder cannot: {reason}")
        checkpoint = cls(
            shape=shape,
            windows=_windows(config, family),
            is_tied=bool(config.get("tie_word_embeddings", False)),
            has_qkv_bias=family == "qwen2",
            has_head_norms=family == "qwen3",
        )
        checkpoint._check_tensors(tensors)
        return checkpoint

    @property
    def num_parameters(self) -> int:
        """Numbers in the matrices."""
        embedding = 0 if self.is_tied else self.shape.vocab * self.shape.hidden
        return embedding + sum(outputs * inputs for outputs, inputs in self._linear_sizes())

    def num_weight_bytes(self, *, int8: bool) -> int:
        """Memory of the packed weights, in bytes; an embedding of its own stays in bf16."""
        embedding = 0 if self.is_tied else 2 * self.shape.vocab * self.shape.hidden
        return embedding + sum(
            outputs * (-(-inputs // INT8_GROUP) * (INT8_GROUP + 4) if int8 else 2 * inputs)
            for outputs, inputs in self._linear_sizes()
        )

    def _linear_sizes(self) -> list[tuple[int, int]]:
        """(outputs, inputs) of every linear layer, the head included."""
        s = self.shape
        attention = s.heads * s.head_dim
        layer = [
            (attention + 2 * s.kv_heads * s.head_dim, s.hidden),
            (s.hidden, attention),
            (2 * s.ffn, s.hidden),
            (s.hidden, s.ffn),
        ]
        return [(s.vocab, s.hidden)] + s.layers * layer

    def tensor_shapes(self) -> Iterator[tuple[str, tuple[int, ...]]]:
        """Every tensor the checkpoint must hold, with its shape."""
        s = self.shape
        queries, keys = s.heads * s.head_dim, s.kv_heads * s.head_dim
        yield "model.embed_tokens.weight", (s.vocab, s.hidden)
        yield "model.norm.weight", (s.hidden,)
        if not self.is_tied:
            yield "lm_head.weight", (s.vocab, s.hidden)
        for index in range(s.layers):
            layer = f"model.layers.{index}."
            yield layer + "input_layernorm.weight", (s.hidden,)
            yield layer + "post_attention_layernorm.weight", (s.hidden,)
            for name, size in (("q", queries), ("k", keys), ("v", keys)):
                yield f"{layer}self_attn.{name}_proj.weight", (size, s.hidden)
                if self.has_qkv_bias:
                    yield f"{layer}self_attn.{name}_proj.bias", (size,)
            yield layer + "self_attn.o_proj.weight", (s.hidden, queries)
            if self.has_head_norms:
                yield layer + "self_attn.q_norm.weight", (s.head_dim,)
                yield layer + "self_attn.k_norm.weight", (s.head_dim,)
            yield layer + "mlp.gate_proj.weight", (s.ffn, s.hidden)
            yield layer + "mlp.up_proj.weight", (s.ffn, s.hidden)
            yield layer + "mlp.down_proj.weight", (s.hidden, s.ffn)

    def _check_tensors(self, tensors: Mapping[str, TensorEntry]) -> None:
        expected = dict(self.tensor_shapes())
        for name, shape in expected.items():
            entry = tensors.get(name)
            if entry is None:
                raise UnsupportedModelError(f"the checkpoint has no tensor '{name}'")
            if entry.shape != shape:
                raise BrokenModelError(
                    f"{entry.file.name}: tensor '{name}' has shape {list(entry.shape)} where "
                    f"config.json says {list(shape)}; the files are of different models"
                )
            if entry.dtype not in ITEM_TYPES:
                raise UnsupportedModelError(f"'{name}' is stored as {entry.dtype}")
        ignored = {"lm_head.weight"} if self.is_tied else set()
        for name in tensors.keys() - expected.keys() - ignored:
            if not name.endswith("rotary_emb.inv_freq"):
                raise UnsupportedModelError(f"the native decoder has no place for '{name}'")


def _windows(config: Mapping[str, Any], family: str) -> tuple[int | None, ...]:
    """Per layer: how many positions it sees, None for all."""
    num_layers = config["num_hidden_layers"]
    window = config.get("sliding_window")
    if family in ("qwen2", "qwen3") and not config.get("use_sliding_window", False):
        window = None
    if window is None or family == "llama":
        return (None,) * num_layers
    kinds = config.get("layer_types")
    if kinds is None:
        first = config.get("max_window_layers", 0) if family.startswith("qwen") else 0
        kinds = [
            "sliding_attention" if index >= first else "full_attention"
            for index in range(num_layers)
        ]
    return tuple(int(window) if kind == "sliding_attention" else None for kind in kinds)


class TensorReader:
    """Tensors of safetensors files by name, read through memory maps."""

    def __init__(self, tensors: Mapping[str, TensorEntry]) -> None:
        self._tensors = tensors
        self._maps: dict[Path, mmap.mmap] = {}

    def bfloat16(self, name: str) -> npt.NDArray[np.uint16]:
        """A tensor as bf16 bits; a view of the file where it is stored so."""
        values = self._read(name)
        if values.dtype == np.uint16:
            return values
        return round_to_bfloat16(values.astype(np.float32))

    def float32(self, name: str) -> npt.NDArray[np.float32]:
        """A tensor as float32; always a copy."""
        values = self._read(name)
        if values.dtype == np.uint16:
            return (values.astype(np.uint32) << np.uint32(16)).view(np.float32)
        return values.astype(np.float32)

    def num_bytes(self, name: str) -> int:
        """Size of a tensor in its file."""
        return self._tensors[name].num_bytes

    def _read(self, name: str) -> npt.NDArray[Any]:
        entry = self._tensors[name]
        if entry.file not in self._maps:
            with entry.file.open("rb") as file:
                self._maps[entry.file] = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        item_type = np.dtype(ITEM_TYPES[entry.dtype])
        count = entry.num_bytes // item_type.itemsize
        values = np.frombuffer(self._maps[entry.file], item_type, count, entry.offset)
        return values.reshape(entry.shape)


def round_to_bfloat16(values: npt.NDArray[np.float32]) -> npt.NDArray[np.uint16]:
    """Round to nearest, ties to even; NaN stays NaN."""
    bits = values.view(np.uint32)
    rounded = (bits + np.uint32(0x7FFF) + ((bits >> np.uint32(16)) & np.uint32(1))) >> np.uint32(16)
    quiet = (bits >> np.uint32(16)) | np.uint32(0x40)
    return np.where(np.isnan(values), quiet, rounded).astype(np.uint16)
