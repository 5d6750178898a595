"""The native library and how it is called.

`native/decoder.cpp` was compiled when the package was built, once for each kind of processor in
`VARIANTS`. Where nothing was built, or nothing for this processor, `why_unavailable()` says so and
models run through PyTorch's own operators.
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy.typing as npt

from tgwui_k8s.errors import IntegrityError
from tgwui_k8s.runtime.limits import cpu_flags
from tgwui_k8s.runtime.packed_codes import CodesLayer, CodesLayout

LIBRARIES = Path(__file__).parent.parent / "native"


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
def load_library(variant: Variant) -> ctypes.CDLL:
    """Open the variant's library, once. Raises `OSError`."""
    library = ctypes.CDLL(str(variant.library))
    for create in (library.native_create, library.native_create_team, library.native_create_codes):
        create.restype = ctypes.c_void_p
    library.native_set_layer.restype = ctypes.c_bool
    return library


class _CodesFormat(ctypes.Structure):
    """`CodesFormat` of codes_product.h."""

    _fields_ = (
        ("bits", ctypes.c_int32),
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


def codes_format(layout: CodesLayout) -> ctypes.Structure:
    """How words of codes are read."""
    return _CodesFormat(
        layout.bits,
        layout.inputs_per_word,
        layout.outputs_per_word,
        (ctypes.c_int32 * 8)(*layout.shifts),
    )


def codes_parts(layers: Sequence[CodesLayer]) -> ctypes.Array[Any]:
    """Layers whose outputs follow one another; the array keeps nothing alive."""
    return (_CodesPart * len(layers))(
        *(
            _CodesPart(
                address(layer.words),
                address(layer.scales),
                address(layer.zeros),
                layer.num_outputs,
            )
            for layer in layers
        )
    )


def address(array: npt.NDArray[Any]) -> ctypes.c_void_p:
    """Where a C-contiguous array lies; the pointer does not keep the array alive.

    NumPy's own pointers would, in a cycle that only the garbage collector frees.
    Raises `IntegrityError` for an array that is not contiguous.
    """
    if not array.flags.c_contiguous:
        raise IntegrityError("the kernels take C-contiguous arrays only")
    return ctypes.c_void_p(array.ctypes.data)
