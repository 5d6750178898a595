"""The native decoder: a whole step of a Llama-shaped model in one call, on x86-64 processors.

Binds `native/decoder.cpp`. NumPy only: a model that runs here is loaded and served without
importing torch.

Results do not depend on the batch: a row's logits are the same bit for bit, alone or beside
others, in one chunk or in many, from the prefix cache or not.
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from dataclasses import dataclass
from enum import IntEnum

import numpy as np
import numpy.typing as npt

from tgwui_k8s.contract import Batch
from tgwui_k8s.errors import NotEnoughMemoryError
from tgwui_k8s.runtime.native_library import (
    Variant,
    address,
    codes_format,
    codes_parts,
    load_library,
)
from tgwui_k8s.runtime.packed_codes import CodesLayer, CodesLayout

BLOCK_SIZE = 16
"""Positions of one KV block; fixed by the layout of keys in registers."""

INT8_GROUP = 64
"""Inputs of an int8 row that share a float32 scale; `kGroup` of int8_product.h."""

REMEDY = "give it more memory or take a smaller model"


class WeightFormat(IntEnum):
    """How linear layers are held in memory; the enum of native/inputs.h."""

    BFLOAT16 = 0
    INT8 = 1
    """Rounded as they are packed, see native/int8_product.h."""
    CODES = 2
    """4 or 8 bits as AWQ and GPTQ have them, see native/codes_product.h; the head in bf16."""


@dataclass(frozen=True)
class WeightKind:
    """The linear layers' format; codes have 4 or 8 bits, and `group_size` inputs share a scale."""

    format: WeightFormat
    code_bits: int = 0
    group_size: int = 0
    """At most 128."""

    def row_bytes(self, inputs: int) -> int:
        """Memory of one output row."""
        if self.format == WeightFormat.INT8:
            return -(-inputs // INT8_GROUP) * (INT8_GROUP + 4)
        if self.format == WeightFormat.CODES:
            return inputs * self.code_bits // 8 + inputs // self.group_size * 5
        return 2 * inputs


BFLOAT16 = WeightKind(WeightFormat.BFLOAT16)
INT8 = WeightKind(WeightFormat.INT8)


class NativeLinear(IntEnum):
    """Which linear layer; the enum of decoder.cpp."""

    QKV = 0
    OUT = 1
    GATE_UP = 2
    DOWN = 3
    HEAD = 4


class NativeVector(IntEnum):
    """Which vector; the enum of decoder.cpp."""

    ATTENTION_NORM = 0
    MLP_NORM = 1
    QUERY_NORM = 2
    KEY_NORM = 3
    QKV_BIAS = 4
    FINAL_NORM = 5


class NativeShape(ctypes.Structure):
    """`Shape` of decoder.cpp."""

    _fields_ = (
        *((name, ctypes.c_int32) for name in (
            "hidden", "layers", "heads", "kv_heads", "head_dim", "ffn", "vocab", "max_positions",
            "threads", "weight_format", "code_bits", "group_size",
        )),
        ("norm_eps", ctypes.c_float),
        ("attention_scale", ctypes.c_float),
    )  # fmt: skip


class NativeSequence(ctypes.Structure):
    """`Sequence` of decoder.cpp."""

    _fields_ = (
        ("first_token", ctypes.c_int32),
        ("num_tokens", ctypes.c_int32),
        ("start", ctypes.c_int32),
        ("table_length", ctypes.c_int32),
        ("block_tables", ctypes.c_void_p),
    )


@dataclass(frozen=True, kw_only=True)
class DecoderShape:
    """Sizes of a Llama-shaped decoder. Widths must be multiples of 16."""

    hidden: int
    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    ffn: int
    vocab: int
    norm_eps: float
    attention_scale: float

    def why_unsupported(self) -> str | None:
        """What about these sizes the kernels cannot do; None if nothing."""
        for name in ("hidden", "head_dim", "ffn"):
            if getattr(self, name) % 16:
                return f"{name} {getattr(self, name)} is not a multiple of 16"
        if self.heads % self.kv_heads:
            return f"{self.heads} heads do not divide into {self.kv_heads} groups"
        return None


class NativeDecoder:
    """Packed weights, a paged KV cache, and `step`."""

    def __init__(
        self,
        shape: DecoderShape,
        *,
        cosines: npt.NDArray[np.float32],
        sines: npt.NDArray[np.float32],
        num_threads: int,
        variant: Variant,
        weights: WeightKind,
    ) -> None:
        """Reserve room for the weights; `set_layer` does for the cache.

        `cosines` and `sines` are float32 [max_positions, head_dim / 2].
        Raises `NotEnoughMemoryError`.
        """
        self.shape = shape
        self._library = load_library(variant)
        sizes = NativeShape(
            shape.hidden, shape.layers, shape.heads, shape.kv_heads, shape.head_dim, shape.ffn,
            shape.vocab, cosines.shape[0], num_threads, weights.format,
            weights.code_bits, weights.group_size,
            shape.norm_eps, shape.attention_scale,
        )  # fmt: skip
        self._decoder = ctypes.c_void_p(
            self._library.native_create(ctypes.byref(sizes), address(cosines), address(sines))
        )
        if not self._decoder.value:
            raise NotEnoughMemoryError(f"the weights do not fit the memory; {REMEDY}")

    def set_layer(self, layer: int, *, group: int, num_blocks: int, window: int | None) -> None:
        """Give a layer its KV blocks, and say which block table it uses and how far it sees.

        Raises `NotEnoughMemoryError`.
        """
        if not self._library.native_set_layer(self._decoder, layer, group, num_blocks, window or 0):
            raise NotEnoughMemoryError(f"the KV cache does not fit the memory; {REMEDY}")

    def set_linear(
        self, which: NativeLinear, layer: int, parts: Sequence[npt.NDArray[np.uint16]]
    ) -> None:
        """Pack a linear layer from its row-major parts, bf16 bits [rows, inputs] each.

        QKV takes three parts, GATE_UP two, the others one; rows need not be contiguous arrays of
        one file, but each part must be C-contiguous.
        """
        addresses = np.concatenate(
            [
                part.ctypes.data + np.arange(part.shape[0], dtype=np.uint64) * part.strides[0]
                for part in parts
            ]
        ).astype(np.uint64)
        self._library.native_set_linear(
            self._decoder, int(which), layer, address(addresses), len(addresses)
        )

    def set_codes(
        self, which: NativeLinear, layer: int, layout: CodesLayout, parts: Sequence[CodesLayer]
    ) -> None:
        """Pack a linear layer from codes in `layout`; parts as for `set_linear`."""
        self._library.native_set_codes(
            self._decoder,
            int(which),
            layer,
            ctypes.byref(codes_format(layout)),
            codes_parts(parts),
            len(parts),
        )

    def get_row(self, which: NativeLinear, layer: int, row: int) -> npt.NDArray[np.float32]:
        """One packed output row, float32 [inputs], as it is computed with.

        Rows of GATE_UP stand in packed order: 16 of the gate, 16 of up, and so on.
        """
        shape = self.shape
        size = {
            NativeLinear.OUT: shape.heads * shape.head_dim,
            NativeLinear.DOWN: shape.ffn,
        }.get(which, shape.hidden)
        values = np.empty(size, np.float32)
        self._library.native_get_row(self._decoder, int(which), layer, row, address(values))
        return values

    def set_vector(self, which: NativeVector, layer: int, values: npt.NDArray[np.float32]) -> None:
        """Set a norm's weight or a bias, float32 [size]."""
        self._library.native_set_vector(
            self._decoder, int(which), layer, address(values), values.size
        )

    def set_embedding(self, rows: npt.NDArray[np.uint16]) -> None:
        """Set an embedding that is not tied to the head, bf16 bits [vocab, hidden]."""
        self._library.native_set_embedding(self._decoder, address(rows))

    def step(self, batch: Batch) -> npt.NDArray[np.float32]:
        """Compute a batch; logits float32 [num_logits, vocab]."""
        sequences = (NativeSequence * len(batch.sequences))()
        tables = [np.array(scheduled.block_tables, np.int32) for scheduled in batch.sequences]
        token_ids: list[int] = []
        logit_tokens: list[int] = []
        for native, scheduled, table in zip(sequences, batch.sequences, tables, strict=True):
            native.first_token = len(token_ids)
            native.num_tokens = len(scheduled.token_ids)
            native.start = scheduled.start
            native.table_length = table.shape[1]
            native.block_tables = table.ctypes.data
            token_ids += scheduled.token_ids
            logit_tokens += range(len(token_ids) - scheduled.num_logits, len(token_ids))
        tokens, scored = np.array(token_ids, np.int32), np.array(logit_tokens, np.int32)
        logits = np.empty((len(scored), self.shape.vocab), np.float32)
        self._library.native_step(
            self._decoder,
            address(tokens),
            len(tokens),
            sequences,
            len(sequences),
            address(scored),
            len(scored),
            address(logits),
        )
        return logits

    def close(self) -> None:
        """Free weights and cache."""
        if self._decoder.value:
            self._library.native_destroy(self._decoder)
            self._decoder.value = None
