"""How checkpoints become quantized weights: which tensors a layer has, and what they mean."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch

from tgwui_k8s.errors import BrokenModelError, UnsupportedModelError
from tgwui_k8s.runtime.checkpoint_reader import LazyTensor
from tgwui_k8s.runtime.quantized.formats import (
    AWQ_PLACES,
    PackedFormat,
    awq_format,
    gptq_format,
)
from tgwui_k8s.runtime.quantized.weight import QuantizedWeight, quantize
from tgwui_k8s.storage.safetensors_file import TensorEntry

_WORD_BITS = 32


class QuantizationScheme(Protocol):
    """Turns a checkpoint's tensors into quantized weights."""

    @property
    def bits(self) -> int:
        """Of one code."""
        ...

    @property
    def description(self) -> str:
        """Method and bits, such as `awq 4 bit`."""
        ...

    def layers(self, tensor_names: Collection[str]) -> set[str]:
        """The linear layers that it quantizes, by the names of the checkpoint's tensors."""
        ...

    def tensors_of(self, layer: str) -> tuple[str, ...]:
        """The tensors that become the layer's weight; its bias is none of them."""
        ...

    def num_bytes(self, entry: TensorEntry) -> int:
        """What one of a layer's tensors takes in memory, about."""
        ...

    def read(self, layer: str, tensors: Mapping[str, LazyTensor]) -> QuantizedWeight:
        """The layer's weight.

        Raises `BrokenModelError` or `UnsupportedModelError` that names the tensor.
        """
        ...


# --------------------------------------------------------------------------------- checkpoints


@dataclass(frozen=True)
class PackedScheme:
    """What AWQ and GPTQ have in common."""

    format: PackedFormat

    @property
    def bits(self) -> int:
        """See `QuantizationScheme`."""
        return self.format.bits

    @property
    def description(self) -> str:
        """See `QuantizationScheme`."""
        return self.format.description

    @property
    def folder(self) -> Path:
        """Where the checkpoint is."""
        return self.format.folder

    def layers(self, tensor_names: Collection[str]) -> set[str]:
        """Those with a part of a quantized weight, whatever the configuration says of exceptions.

        Raises `UnsupportedModelError` for scales that AWQ has put on an activation.
        """
        if scaled := next((name for name in tensor_names if name.endswith(".act.scales")), None):
            raise UnsupportedModelError(
                f"{self.folder}: tensor '{scaled}' scales an activation, which this loader does "
                "not support; the nearest is the vLLM loader"
            )
        return {
            name.rpartition(".")[0]
            for name in tensor_names
            if name.rpartition(".")[2] in ("qweight", "qzeros")
        }

    def tensors_of(self, layer: str) -> tuple[str, ...]:
        """All that a tool may have written for the layer."""
        return tuple(f"{layer}.{part}" for part in ("qweight", "qzeros", "scales", "g_idx"))

    def num_bytes(self, entry: TensorEntry) -> int:
        """As much as in the file."""
        return entry.num_bytes

    def _tensor(
        self, name: str, tensors: Mapping[str, LazyTensor], shape: tuple[int, ...]
    ) -> torch.Tensor:
        """One tensor of a layer; -1 in `shape` fits every size."""
        if name not in tensors:
            raise BrokenModelError(
                f"{self.folder}: tensor '{name}' is missing; the checkpoint is not complete, copy "
                "the whole model folder again"
            )
        tensor = tensors[name][...]
        fits = tensor.ndim == len(shape) and all(
            wanted in (-1, size) for wanted, size in zip(shape, tensor.shape, strict=True)
        )
        if not fits:
            raise BrokenModelError(
                f"{self.folder}: tensor '{name}' is {list(tensor.shape)}, which does not fit "
                f"{self.bits} bits in groups of {self.format.group_size} (expected "
                f"{['any' if size < 0 else size for size in shape]})"
            )
        is_packed = name.rsplit(".", 1)[1] != "scales"
        if is_packed != (tensor.dtype == torch.int32):
            raise UnsupportedModelError(
                f"{self.folder}: tensor '{name}' has type {tensor.dtype}, which this loader cannot "
                "read"
            )
        return tensor

    def _num_groups(self, layer: str, num_inputs: int) -> int:
        group_size = num_inputs if self.format.group_size == -1 else self.format.group_size
        if num_inputs % group_size:
            raise BrokenModelError(
                f"{self.folder}: the {num_inputs} inputs of '{layer}' do not divide into groups "
                f"of {group_size}"
            )
        return num_inputs // group_size


@dataclass(frozen=True)
class AwqScheme(PackedScheme):
    """AWQ in its GEMM layout."""

    @classmethod
    def from_config(cls, folder: Path, config: Mapping[str, Any]) -> AwqScheme:
        """Raises `UnsupportedModelError` that names what is not supported."""
        return cls(awq_format(folder, config))

    def read(self, layer: str, tensors: Mapping[str, LazyTensor]) -> QuantizedWeight:
        """See `QuantizationScheme`."""
        words = self._tensor(f"{layer}.qweight", tensors, (-1, -1))
        num_inputs, num_words = words.shape
        num_groups = self._num_groups(layer, num_inputs)
        zeros = self._tensor(f"{layer}.qzeros", tensors, (num_groups, num_words))
        scales = self._tensor(f"{layer}.scales", tensors, (num_groups, 8 * num_words))
        return QuantizedWeight(
            codes=_unpack_awq(words),
            scales=scales.t().contiguous(),
            zeros=_unpack_awq(zeros),
            bits=4,
        )


@dataclass(frozen=True)
class GptqScheme(PackedScheme):
    """GPTQ, with or without act-order."""

    @classmethod
    def from_config(cls, folder: Path, config: Mapping[str, Any]) -> GptqScheme:
        """Raises `UnsupportedModelError` that names what is not supported."""
        return cls(gptq_format(folder, config))

    def read(self, layer: str, tensors: Mapping[str, LazyTensor]) -> QuantizedWeight:
        """See `QuantizationScheme`."""
        per_word = _WORD_BITS // self.bits
        words = self._tensor(f"{layer}.qweight", tensors, (-1, -1))
        num_inputs, num_outputs = per_word * words.shape[0], words.shape[1]
        num_groups = self._num_groups(layer, num_inputs)
        packed_zeros = self._tensor(
            f"{layer}.qzeros", tensors, (num_groups, num_outputs // per_word)
        )
        scales = self._tensor(f"{layer}.scales", tensors, (num_groups, num_outputs))
        # A byte that overflows starts again at 0, as AutoGPTQ's own unpacking does.
        zeros = (_unpack_gptq(packed_zeros, self.bits) + self.format.zero_offset) & (
            2**self.bits - 1
        )
        codes = _unpack_gptq(words.t(), self.bits)
        order = self._order(layer, tensors, num_inputs, num_groups)
        return QuantizedWeight(
            codes=codes if order is None else codes[:, order],
            scales=scales.t().contiguous(),
            zeros=zeros.t().contiguous(),
            bits=self.bits,
            order=order,
        )

    def _order(
        self, layer: str, tensors: Mapping[str, LazyTensor], num_inputs: int, num_groups: int
    ) -> torch.Tensor | None:
        """The inputs sorted by their groups; None where they are sorted already."""
        name = f"{layer}.g_idx"
        if name not in tensors:
            return None
        groups = self._tensor(name, tensors, (num_inputs,))
        expected = torch.arange(num_groups, dtype=groups.dtype).repeat_interleave(
            num_inputs // num_groups
        )
        if torch.equal(groups, expected):
            return None
        ordered, order = groups.sort(stable=True)
        if not torch.equal(ordered, expected):
            raise UnsupportedModelError(
                f"{self.folder}: tensor '{name}' makes groups of different sizes, which this "
                "loader does not support; the nearest is the vLLM loader"
            )
        return order


def _unpack_awq(words: torch.Tensor) -> torch.Tensor:
    """int32 [rows, outputs/8] to codes uint8 [outputs, rows]."""
    turned = words.t().contiguous()
    codes = torch.empty(turned.shape[0], 8, turned.shape[1], dtype=torch.uint8)
    for output, place in enumerate(AWQ_PLACES):
        codes[:, output] = (turned >> (4 * place)) & 15
    return codes.flatten(0, 1)


def _unpack_gptq(words: torch.Tensor, bits: int) -> torch.Tensor:
    """int32 [rows, n] to codes uint8 [rows, n * 32/bits], lowest bits first."""
    numbers = words.contiguous().view(torch.uint8)
    return numbers if bits == 8 else torch.stack((numbers & 15, numbers >> 4), dim=-1).flatten(1)


# ---------------------------------------------------------------------------- quantizing at load


@dataclass(frozen=True)
class RoundingScheme:
    """Rounds the weights of an ordinary checkpoint while they are read.

    `linears` are the model's linear layers and their sizes; the head is best left out.
    """

    bits: int
    linears: Mapping[str, tuple[int, int]]

    @property
    def description(self) -> str:
        """Bits, and that they came about at load."""
        return f"rounded to {self.bits} bit"

    def layers(self, tensor_names: Collection[str]) -> set[str]:
        """The linear layers whose weight the checkpoint holds under that name."""
        return {name for name in self.linears if f"{name}.weight" in tensor_names}

    def tensors_of(self, layer: str) -> tuple[str, ...]:
        """The weight alone."""
        return (f"{layer}.weight",)

    def num_bytes(self, entry: TensorEntry) -> int:
        """The codes, and a tenth for scales and zeros."""
        num_weights = entry.num_bytes // (entry.float_bytes or 1)
        return num_weights * self.bits * 11 // 80

    def read(self, layer: str, tensors: Mapping[str, LazyTensor]) -> QuantizedWeight:
        """See `QuantizationScheme`; groups of 128, 64 or 32 inputs, whichever divides them."""
        weight = tensors[f"{layer}.weight"][...]
        group_size = rounding_group_size(weight.shape[1])
        return quantize(weight, bits=self.bits, group_size=group_size or weight.shape[1])


def rounding_group_size(num_inputs: int) -> int | None:
    """The size of groups for so many inputs; None where none divides them."""
    return next((size for size in (128, 64, 32) if num_inputs % size == 0), None)
