"""Fills the native decoder from a checkpoint: every tensor is read once, and packed."""

from __future__ import annotations

from functools import partial

import numpy as np

from tgwui_k8s.contract import LoadProgress, ProgressCallback
from tgwui_k8s.runtime.llama_checkpoint import LlamaCheckpoint, PackedWeights
from tgwui_k8s.runtime.native import NativeDecoder, NativeLinear, NativeVector
from tgwui_k8s.runtime.packed_codes import CodesLayout, read_codes
from tgwui_k8s.runtime.tensor_reader import TensorReader


def read_weights(
    decoder: NativeDecoder,
    checkpoint: LlamaCheckpoint,
    reader: TensorReader,
    progress: ProgressCallback,
) -> None:
    """Pack every tensor and tell how far that is.

    Raises `UnsupportedModelError` for codes in an order that the decoder does not have.
    """
    _Packing(decoder, checkpoint, reader, progress).run()


class _Packing:
    def __init__(
        self,
        decoder: NativeDecoder,
        checkpoint: LlamaCheckpoint,
        reader: TensorReader,
        progress: ProgressCallback,
    ) -> None:
        self._decoder = decoder
        self._checkpoint = checkpoint
        self._reader = reader
        self._progress = progress
        self._total = sum(reader.num_bytes(name) for name, _ in checkpoint.tensor_shapes())
        self._done = 0

    def run(self) -> None:
        """The head first, which codes never are, then layer after layer, as files hold them."""
        is_tied = self._checkpoint.is_tied
        self._floats(NativeLinear.HEAD, 0, "model.embed_tokens" if is_tied else "lm_head")
        if not is_tied:
            self._decoder.set_embedding(self._reader.bfloat16("model.embed_tokens.weight"))
            self._note("model.embed_tokens.weight")
        self._vector(NativeVector.FINAL_NORM, 0, "model.norm.weight")
        for layer in range(self._checkpoint.shape.layers):
            self._pack_layer(layer)
        self._progress(LoadProgress("loading", self._total, self._total))

    def _pack_layer(self, layer: int) -> None:
        prefix = f"model.layers.{layer}."
        qkv = [f"{prefix}self_attn.{name}_proj" for name in "qkv"]
        packed = self._checkpoint.packed
        linear = self._floats if packed is None else partial(self._codes, packed)
        linear(NativeLinear.QKV, layer, *qkv)
        linear(NativeLinear.OUT, layer, prefix + "self_attn.o_proj")
        linear(NativeLinear.GATE_UP, layer, prefix + "mlp.gate_proj", prefix + "mlp.up_proj")
        linear(NativeLinear.DOWN, layer, prefix + "mlp.down_proj")
        self._vector(NativeVector.ATTENTION_NORM, layer, prefix + "input_layernorm.weight")
        self._vector(NativeVector.MLP_NORM, layer, prefix + "post_attention_layernorm.weight")
        if self._checkpoint.has_qkv_bias:
            self._vector(NativeVector.QKV_BIAS, layer, *(f"{name}.bias" for name in qkv))
        if self._checkpoint.has_head_norms:
            self._vector(NativeVector.QUERY_NORM, layer, prefix + "self_attn.q_norm.weight")
            self._vector(NativeVector.KEY_NORM, layer, prefix + "self_attn.k_norm.weight")

    def _floats(self, which: NativeLinear, layer: int, *modules: str) -> None:
        names = [f"{module}.weight" for module in modules]
        self._decoder.set_linear(which, layer, [self._reader.bfloat16(name) for name in names])
        self._note(*names)

    def _codes(self, packed: PackedWeights, which: NativeLinear, layer: int, *modules: str) -> None:
        stored, group_size = packed.stored, packed.held.group_size
        parts = [read_codes(self._reader, module, stored, group_size) for module in modules]
        self._decoder.set_codes(which, layer, CodesLayout.of(stored), parts)
        self._note(*(f"{m}.{part}" for m in modules for part in ("qweight", "qzeros", "scales")))

    def _vector(self, which: NativeVector, layer: int, *names: str) -> None:
        values = np.concatenate([self._reader.float32(name) for name in names])
        self._decoder.set_vector(which, layer, values)
        self._note(*names)

    def _note(self, *names: str) -> None:
        self._done += sum(self._reader.num_bytes(name) for name in names)
        self._progress(LoadProgress("loading", self._done, self._total))
