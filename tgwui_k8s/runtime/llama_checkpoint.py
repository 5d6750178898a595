"""Hugging Face checkpoints of Llama-shaped decoders, as the native decoder wants them.

Llama, Mistral, Qwen2 and Qwen3: pre-norm with RMSNorm, rotary embeddings, grouped-query attention
(with biases in Qwen2, with norms of queries and keys in Qwen3), SwiGLU. What differs from that
in any way is refused here, so that it runs through Transformers instead. Weights are floating
point, or codes as AWQ and GPTQ keep them.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from tgwui_k8s.errors import BrokenModelError, UnsupportedModelError
from tgwui_k8s.runtime.native import BFLOAT16, INT8, DecoderShape, WeightFormat, WeightKind
from tgwui_k8s.runtime.packed_codes import group_size_in_memory
from tgwui_k8s.runtime.quantized.formats import PackedFormat
from tgwui_k8s.storage.safetensors_file import TensorEntry

ARCHITECTURES = {
    "LlamaForCausalLM": "llama",
    "MistralForCausalLM": "mistral",
    "Qwen2ForCausalLM": "qwen2",
    "Qwen3ForCausalLM": "qwen3",
}
FLOAT_TYPES = ("BF16", "F16", "F32")


@dataclass(frozen=True)
class PackedWeights:
    """Linear layers in codes, all but the head: as files hold them, and as memory does."""

    stored: PackedFormat
    held: WeightKind

    @classmethod
    def of(cls, stored: PackedFormat, shape: DecoderShape) -> PackedWeights:
        """Raises `UnsupportedModelError` for codes that the kernels cannot multiply."""
        if stored.has_act_order:
            raise UnsupportedModelError(f"the native decoder has no {stored.method} with act-order")
        inputs = (shape.hidden, shape.heads * shape.head_dim, shape.ffn)
        if stored.group_size > 0 and any(n % stored.group_size for n in inputs):
            raise UnsupportedModelError(
                f"the native decoder cannot divide {inputs} inputs into groups of "
                f"{stored.group_size}"
            )
        group_size = group_size_in_memory(*inputs, *({stored.group_size} - {-1}))
        return cls(stored, WeightKind(WeightFormat.CODES, stored.bits, group_size))


@dataclass(frozen=True, kw_only=True)
class LlamaCheckpoint:
    """A checkpoint that the native decoder can run."""

    shape: DecoderShape
    windows: tuple[int | None, ...]
    is_tied: bool
    has_qkv_bias: bool
    has_head_norms: bool
    packed: PackedWeights | None = None
    """None for floating point."""

    @classmethod
    def read(
        cls,
        config: Mapping[str, Any],
        tensors: Mapping[str, TensorEntry],
        packed: PackedFormat | None = None,
    ) -> LlamaCheckpoint:
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
            packed=None if packed is None else PackedWeights.of(packed, shape),
        )
        checkpoint._check_tensors(tensors)
        return checkpoint

    @property
    def num_parameters(self) -> int:
        """Numbers in the matrices."""
        embeddings = (1 if self.is_tied else 2) * self.shape.vocab * self.shape.hidden
        layer = sum(outputs * inputs for outputs, inputs in self._layer_sizes())
        return embeddings + self.shape.layers * layer

    def num_weight_bytes(self, weights: WeightKind) -> int:
        """Memory of the packed weights, in bytes; an embedding of its own stays in bf16."""
        rows = self.shape.vocab
        embedding = 0 if self.is_tied else rows * BFLOAT16.row_bytes(self.shape.hidden)
        head = rows * (INT8 if weights == INT8 else BFLOAT16).row_bytes(self.shape.hidden)
        layer = sum(outputs * weights.row_bytes(inputs) for outputs, inputs in self._layer_sizes())
        return embedding + head + self.shape.layers * layer

    def _layer_sizes(self) -> list[tuple[int, int]]:
        """(outputs, inputs) of every linear layer of one block."""
        s = self.shape
        attention = s.heads * s.head_dim
        return [
            (attention + 2 * s.kv_heads * s.head_dim, s.hidden),
            (s.hidden, attention),
            (2 * s.ffn, s.hidden),
            (s.hidden, s.ffn),
        ]

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
                yield from self._linear_tensors(f"{layer}self_attn.{name}_proj", size, s.hidden)
                if self.has_qkv_bias:
                    yield f"{layer}self_attn.{name}_proj.bias", (size,)
            yield from self._linear_tensors(layer + "self_attn.o_proj", s.hidden, queries)
            if self.has_head_norms:
                yield layer + "self_attn.q_norm.weight", (s.head_dim,)
                yield layer + "self_attn.k_norm.weight", (s.head_dim,)
            yield from self._linear_tensors(layer + "mlp.gate_proj", s.ffn, s.hidden)
            yield from self._linear_tensors(layer + "mlp.up_proj", s.ffn, s.hidden)
            yield from self._linear_tensors(layer + "mlp.down_proj", s.hidden, s.ffn)

    def _linear_tensors(
        self, name: str, outputs: int, inputs: int
    ) -> Iterator[tuple[str, tuple[int, ...]]]:
        if self.packed is None:
            yield f"{name}.weight", (outputs, inputs)
            return
        stored = self.packed.stored
        groups = 1 if stored.group_size == -1 else inputs // stored.group_size
        codes = 32 // stored.bits
        is_awq = stored.method == "awq"
        words = (inputs, outputs // codes) if is_awq else (inputs // codes, outputs)
        yield f"{name}.qweight", words
        yield f"{name}.qzeros", (groups, outputs // codes)
        yield f"{name}.scales", (groups, outputs)

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
            types = ("I32",) if name.endswith((".qweight", ".qzeros")) else FLOAT_TYPES
            if entry.dtype not in types:
                raise UnsupportedModelError(f"'{name}' is stored as {entry.dtype}")
        ignored = {"lm_head.weight"} if self.is_tied else set()
        endings = ("rotary_emb.inv_freq",) if self.packed is None else ("inv_freq", ".g_idx")
        for name in tensors.keys() - expected.keys() - ignored:
            if not name.endswith(endings):
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
