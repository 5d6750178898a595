"""The native decoder: a whole step of a Llama-shaped model in one call, on x86-64 processors.

Binds `native/decoder.cpp`, which was compiled when the package was built, once for each kind of
processor in `VARIANTS`. NumPy only: a model that runs here is loaded and served without importing
torch. Where no library was built, or none for this processor, `why_unavailable()` says so and the
Transformers loader is used instead.

Results do not depend on the batch: a row's logits are the same bit for bit, alone or beside
others, in one chunk or in many, from the prefix cache or not.
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from dataclasses import dataclass
from enum import IntEnum
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from tgwui_k8s.contract import Batch
from tgwui_k8s.errors import IntegrityError, NotEnoughMemoryError
from tgwui_k8s.runtime.limits import cpu_flags
from tgwui_k8s.runtime.packed_codes import CodesLayer, CodesLayout

LIBRARIES = Path(__file__).parent.parent / "native"

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
    """4 bits as AWQ and GPTQ have them, see native/codes_product.h; the head in bf16."""


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
            "threads", "weight_format", "group_size",
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


class _CodesFormat(ctypes.Structure):
    """`CodesFormat` of codes_product.h."""

    _fields_ = (
        ("inputs_per_word", ctypes.c_int32),
        ("outputs_per_word", ctypes.c_int32),
        ("shifts", ctypes.c_int32 * 8),
    )


class _CodesPart(ctypes.Structure):
    """`CodesPart` of codes_product.h."""

    _fields_ = (
        ("words", ctypes.c_void_p),
        ("scales", ctypes.c_void_p),
        ("zeros", ctypes.c_void_p),
        ("num_outputs", ctypes.c_int32),
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


@dataclass(frozen=True, kw_only=True)
class Variant:
    """The decoder as it was compiled for one kind of processor.

    `cpu_flags` are what such a processor has, in the kernel's words. Variants with the same
    `numerics` give the same bits; the name changes whenever logits may.
    """

    name: str
    cpu_flags: frozenset[str]
    numerics: str

    @property
    def library(self) -> Path:
        """Where the build hook puts it."""
        return LIBRARIES / f"decoder-{self.name}.so"


_AVX2 = frozenset({"avx2", "fma"})
_AVX512 = _AVX2 | {"avx512f", "avx512bw", "avx512dq", "avx512vl"}
_VNNI = _AVX512 | {"avx512_vnni"}

VARIANTS = (
    Variant(name="avx512bf16", cpu_flags=_VNNI | {"avx512_bf16"}, numerics="native-bf16-2"),
    Variant(name="avx512vnni", cpu_flags=_VNNI, numerics="native-float32-1"),
    Variant(name="avx512", cpu_flags=_AVX512, numerics="native-float32-1"),
    Variant(name="avx2", cpu_flags=_AVX2, numerics="native-float32-1"),
)
"""Fastest first; the libraries of hatch_build.py."""


def variants_here() -> tuple[Variant, ...]:
    """Those that were built and that this processor runs, the fastest first."""
    flags = cpu_flags()
    return tuple(
        variant for variant in VARIANTS if variant.cpu_flags <= flags and variant.library.exists()
    )


def why_unavailable() -> str | None:
    """Why the native decoder cannot run on this machine; None where it can."""
    if variants_here():
        return None
    if not any(variant.library.exists() for variant in VARIANTS):
        return "the native library was not built (no C++ compiler at install time)"
    return "the processor has no AVX2"


@cache
def _load(library: Path) -> ctypes.CDLL:
    loaded = ctypes.CDLL(str(library))
    loaded.native_create.restype = ctypes.c_void_p
    return loaded


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
        weight_format: WeightFormat = WeightFormat.BFLOAT16,
        group_size: int = 0,
    ) -> None:
        """Reserve room for the weights; `set_layer` does for the cache.

        `cosines` and `sines` are float32 [max_positions, head_dim / 2]. Inputs share a
        scale in groups of `group_size` with codes, which are set by `set_codes`.
        Raises `NotEnoughMemoryError`.
        """
        self.shape = shape
        self._library = _load(variant.library)
        sizes = NativeShape(
            shape.hidden, shape.layers, shape.heads, shape.kv_heads, shape.head_dim, shape.ffn,
            shape.vocab, cosines.shape[0], num_threads, weight_format, group_size,
            shape.norm_eps, shape.attention_scale,
        )  # fmt: skip
        self._decoder = ctypes.c_void_p(
            self._library.native_create(ctypes.byref(sizes), _address(cosines), _address(sines))
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
            self._decoder, int(which), layer, _address(addresses), len(addresses)
        )

    def set_codes(
        self, which: NativeLinear, layer: int, layout: CodesLayout, parts: Sequence[CodesLayer]
    ) -> None:
        """Pack a linear layer from codes in `layout`; parts as for `set_linear`."""
        codes_format = _CodesFormat(
            layout.inputs_per_word, layout.outputs_per_word, (ctypes.c_int32 * 8)(*layout.shifts)
        )
        native_parts = (_CodesPart * len(parts))(
            *(
                _CodesPart(
                    _address(part.words),
                    _address(part.scales),
                    _address(part.zeros),
                    part.num_outputs,
                )
                for part in parts
            )
        )
        self._library.native_set_codes(
            self._decoder,
            int(which),
            layer,
            ctypes.byref(codes_format),
            native_parts,
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
        self._library.native_get_row(self._decoder, int(which), layer, row, _address(values))
        return values

    def set_vector(self, which: NativeVector, layer: int, values: npt.NDArray[np.float32]) -> None:
        """Set a norm's weight or a bias, float32 [size]."""
        self._library.native_set_vector(
            self._decoder, int(which), layer, _address(values), values.size
        )

    def set_embedding(self, rows: npt.NDArray[np.uint16]) -> None:
        """Set an embedding that is not tied to the head, bf16 bits [vocab, hidden]."""
        self._library.native_set_embedding(self._decoder, _address(rows))

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
        logits = np.empty((len(logit_tokens), self.shape.vocab), np.float32)
        self._library.native_step(
            self._decoder,
            _address(np.array(token_ids, np.int32)),
            len(token_ids),
            sequences,
            len(sequences),
            _address(np.array(logit_tokens, np.int32)),
            len(logit_tokens),
            _address(logits),
        )
        return logits

    def close(self) -> None:
        """Free weights and cache."""
        if self._decoder.value:
            self._library.native_destroy(self._decoder)
            self._decoder.value = None


def _address(array: npt.NDArray[Any]) -> ctypes.c_void_p:
    """Where a C-contiguous array lies; the pointer keeps the array alive."""
    if not array.flags.c_contiguous:
        raise IntegrityError("the kernels take C-contiguous arrays only")
    return array.ctypes.data_as(ctypes.c_void_p)
