"""Products with quantized weights on CPUs: binds `native/quantized_linear.cpp`.

The library is compiled when the package is built. bfloat16 needs AVX-512 BF16; float32 runs on
every x86-64 processor, float16 is computed as float32.
"""

from __future__ import annotations

import ctypes
import weakref
from functools import lru_cache
from pathlib import Path

import torch

from tgwui_k8s.runtime.quantized.weight import QuantizedWeight

LIBRARY = Path(__file__).parents[2] / "native" / "quantized_linear.so"

_LANES = 16


class _Weight(ctypes.Structure):
    """`QuantizedWeight` of quantized_linear.cpp."""

    _fields_ = (
        ("codes", ctypes.c_void_p),
        ("scales", ctypes.c_void_p),
        ("zeros", ctypes.c_void_p),
        ("inputs", ctypes.c_int32),
        ("outputs", ctypes.c_int32),
        ("group_size", ctypes.c_int32),
        ("planes", ctypes.c_int32),
    )


@lru_cache(maxsize=1)
def _library() -> ctypes.CDLL:
    library = ctypes.CDLL(str(LIBRARY))
    library.quantized_has_bf16.restype = ctypes.c_bool
    library.quantized_create_team.restype = ctypes.c_void_p
    return library


def why_unavailable() -> str | None:
    """Why the library cannot be used; None where it can."""
    if not LIBRARY.exists():
        return "the library was not built (no C++ compiler at install time)"
    try:
        _library()
    except OSError as error:
        return f"the library does not load: {error}"
    return None


class Team:
    """The threads that compute; one for all layers of a model."""

    def __init__(self, num_threads: int) -> None:
        self._library = _library()
        self.handle = ctypes.c_void_p(self._library.quantized_create_team(num_threads))
        self.has_bf16: bool = self._library.quantized_has_bf16()
        weakref.finalize(self, self._library.quantized_destroy_team, self.handle)


class NativeProduct:
    """One layer's weight, packed for the kernel."""

    def __init__(self, weight: QuantizedWeight, team: Team) -> None:
        """`weight.group_size` must be a multiple of 8."""
        self._team = team
        self._library = _library()
        self._codes = _pack_codes(weight.codes, weight.bits)
        self._scales = _tile(weight.scales.float())
        self._zeros = _tile(weight.zeros)
        self._num_outputs = weight.num_outputs
        self._weight = _Weight(
            self._codes.data_ptr(),
            self._scales.data_ptr(),
            self._zeros.data_ptr(),
            weight.num_inputs,
            weight.num_outputs,
            weight.group_size,
            weight.bits // 4,
        )

    @property
    def num_bytes(self) -> int:
        """Memory that the weight takes."""
        return self._codes.nbytes + self._scales.nbytes + self._zeros.nbytes

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        """x [rows, inputs] times the weight: [rows, outputs] in x's type."""
        is_bf16 = x.dtype == torch.bfloat16 and self._team.has_bf16
        dtype = torch.bfloat16 if is_bf16 else torch.float32
        inputs = x.to(dtype).contiguous()
        output = torch.empty(x.shape[0], self._num_outputs, dtype=dtype)
        self._library.quantized_multiply(
            self._team.handle,
            ctypes.byref(self._weight),
            ctypes.c_void_p(inputs.data_ptr()),
            x.shape[0],
            is_bf16,
            ctypes.c_void_p(output.data_ptr()),
        )
        return output.to(x.dtype)


def _pack_codes(codes: torch.Tensor, bits: int) -> torch.Tensor:
    """int32 [outputs/16, inputs/8, planes, 16]: see the layout in quantized_linear.cpp."""
    planes = [codes] if bits == 4 else [codes >> 4, codes & 15]
    packed = []
    for plane in planes:
        # Input 4 a + 2 b + c of a word stands in byte 2 c + a, in its low or high half by b.
        inputs = plane.unflatten(1, (-1, 2, 2, 2))
        halves = inputs[:, :, :, 0] | (inputs[:, :, :, 1] << 4)
        words = halves.transpose(2, 3).flatten(2).contiguous().view(torch.int32)
        packed.append(_tile(words.squeeze(-1)))
    return torch.stack(packed, dim=2).contiguous()


def _tile(rows: torch.Tensor) -> torch.Tensor:
    """[outputs, n] to [outputs/16, n, 16], the outputs of a tile side by side; zeros as padding."""
    num_missing = -rows.shape[0] % _LANES
    padded = torch.nn.functional.pad(rows, (0, 0, 0, num_missing))
    return padded.unflatten(0, (-1, _LANES)).transpose(1, 2).contiguous()
