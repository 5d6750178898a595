"""Products with codes on CPUs: binds `native/codes_linear.h`.

Inputs are rounded to 16 bits with one scale a row, which loses less than bfloat16 does; float32
inputs are taken in two such parts, so that nothing is lost. A row's product is the same, bit for
bit, whatever rows stand beside it.
"""

from __future__ import annotations

import ctypes
import weakref

import torch

from tgwui_k8s.errors import NotEnoughMemoryError
from tgwui_k8s.runtime.native_library import (
    codes_format,
    codes_parts,
    load_library,
    variants_here,
)
from tgwui_k8s.runtime.packed_codes import CodesLayer, CodesLayout, group_size_in_memory
from tgwui_k8s.runtime.quantized.weight import QuantizedWeight

_INPUTS_AT_ONCE = 16


class Team:
    """The threads that compute, and their buffers; one for all layers of a model."""

    def __init__(self, num_threads: int) -> None:
        self.library = load_library(variants_here()[0])
        self.handle = ctypes.c_void_p(self.library.native_create_team(num_threads))
        weakref.finalize(self, self.library.native_destroy_team, self.handle)


def fits(weight: QuantizedWeight) -> bool:
    """Whether the kernel can hold this weight."""
    has_groups = group_size_in_memory(weight.group_size) > 0
    return has_groups and weight.num_inputs % _INPUTS_AT_ONCE == 0


class NativeProduct:
    """One layer's weight, packed for the kernel."""

    def __init__(self, weight: QuantizedWeight, team: Team) -> None:
        """The weight must fit (`fits`). Raises `NotEnoughMemoryError`."""
        group_size = group_size_in_memory(weight.group_size)
        num_groups = weight.num_inputs // group_size
        row_bytes = weight.num_inputs * weight.bits // 8 + 5 * num_groups
        self.num_bytes = weight.num_outputs * row_bytes
        self._num_outputs = weight.num_outputs
        self._team = team
        self._library = team.library
        self._layer = ctypes.c_void_p(
            self._library.native_create_codes(
                weight.num_outputs, weight.num_inputs, weight.bits, group_size
            )
        )
        if not self._layer.value:
            raise NotEnoughMemoryError("the weights do not fit the memory; take a smaller model")
        weakref.finalize(self, self._library.native_destroy_codes, self._layer)
        layer = CodesLayer(
            words=_words(weight).numpy(),
            scales=_by_groups(weight.scales.float(), group_size, weight).numpy(),
            zeros=_by_groups(weight.zeros, group_size, weight).numpy(),
        )
        layout = codes_format(CodesLayout.by_inputs(weight.bits))
        self._library.native_fill_codes(
            self._layer, team.handle, ctypes.byref(layout), codes_parts([layer])
        )

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        """x [rows, inputs] times the weight: [rows, outputs] in x's type."""
        inputs = x.float().contiguous()
        output = torch.empty(x.shape[0], self._num_outputs)
        self._library.native_multiply_codes(
            self._layer,
            self._team.handle,
            ctypes.c_void_p(inputs.data_ptr()),
            x.shape[0],
            x.dtype == torch.float32,
            ctypes.c_void_p(output.data_ptr()),
        )
        return output.to(x.dtype)


def _words(weight: QuantizedWeight) -> torch.Tensor:
    """int32 [inputs / codes in a word, outputs], in the layout `by_inputs`."""
    codes = weight.codes.contiguous()
    if weight.bits == 4:
        codes = codes[:, 0::2] | codes[:, 1::2] << 4
    return codes.view(torch.int32).t().contiguous()


def _by_groups(values: torch.Tensor, group_size: int, weight: QuantizedWeight) -> torch.Tensor:
    """[outputs, groups] to [groups in memory, outputs]."""
    repeats = weight.group_size // group_size
    return values.repeat_interleave(repeats, dim=1).t().contiguous()
