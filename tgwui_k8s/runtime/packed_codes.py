"""Layers of AWQ and GPTQ in codes, as the native library takes them."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from tgwui_k8s.errors import UnsupportedModelError
from tgwui_k8s.runtime.quantized.formats import AWQ_PLACES, PackedFormat
from tgwui_k8s.runtime.tensor_reader import TensorReader


@dataclass(frozen=True)
class CodesLayout:
    """Where the codes of an int32 stand: some inputs of one output, or some outputs of one input.

    Code i, counted along the inputs or the outputs, begins at bit `shifts[i]`.
    """

    bits: int
    inputs_per_word: int
    outputs_per_word: int
    shifts: tuple[int, ...]

    @classmethod
    def of(cls, packed: PackedFormat) -> CodesLayout:
        """The layout of the method."""
        if packed.method == "awq":
            return cls(4, 1, 8, tuple(4 * place for place in AWQ_PLACES))
        return cls.by_inputs(packed.bits)

    @classmethod
    def by_inputs(cls, bits: int) -> CodesLayout:
        """Consecutive inputs from the lowest bits on: GPTQ's layout."""
        return cls(bits, 32 // bits, 1, tuple(range(0, 32, bits)))

    def unpack(self, words: npt.NDArray[np.int32]) -> npt.NDArray[np.uint8]:
        """int32 [rows, n] to codes [rows, n x codes]: how both methods keep zero points."""
        shifted = words.view(np.uint32)[..., None] >> np.array(self.shifts, np.uint32)
        codes = shifted & np.uint32(2**self.bits - 1)
        return codes.astype(np.uint8).reshape(words.shape[0], -1)


@dataclass(frozen=True)
class CodesLayer:
    """One linear layer, the codes as they are in the file.

    weight[output, input] = (code - zero[group, output]) * scale[group, output].

    `words` int32 [inputs / inputs_per_word, outputs / outputs_per_word]; `scales` float32 and
    `zeros` uint8 [groups, outputs].
    """

    words: npt.NDArray[np.int32]
    scales: npt.NDArray[np.float32]
    zeros: npt.NDArray[np.uint8]

    @property
    def num_outputs(self) -> int:
        """Rows of the weight."""
        return self.scales.shape[1]


def group_size_in_memory(*sizes: int) -> int:
    """The most inputs, at most 128, that may share a scale where all `sizes` are divided; or 0.

    Of a larger group the sum may not fit the kernel's int32. Several groups in memory then repeat
    the scale of one in the checkpoint.
    """
    common = math.gcd(*sizes)
    return next((size for size in range(128, 0, -8) if common % size == 0), 0)


def read_codes(
    reader: TensorReader, name: str, packed: PackedFormat, group_size: int
) -> CodesLayer:
    """The layer called `name`, in groups of `group_size`, which divides the checkpoint's own.

    Raises `UnsupportedModelError` where inputs are not in the order of their groups.
    """
    layout = CodesLayout.of(packed)
    words = reader.int32(f"{name}.qweight")
    scales = reader.float32(f"{name}.scales")
    zeros = layout.unpack(reader.int32(f"{name}.qzeros"))
    zeros = (zeros + np.uint8(packed.zero_offset)) & np.uint8(2**packed.bits - 1)
    num_inputs, num_groups = words.shape[0] * layout.inputs_per_word, scales.shape[0]
    if f"{name}.g_idx" in reader:
        expected = np.arange(num_inputs) // (num_inputs // num_groups)
        if not np.array_equal(reader.int32(f"{name}.g_idx"), expected):
            raise UnsupportedModelError(f"the native decoder has no act-order, as in '{name}'")
    repeats = num_inputs // num_groups // group_size
    return CodesLayer(
        words=words,
        scales=np.repeat(scales, repeats, axis=0),
        zeros=np.repeat(zeros, repeats, axis=0),
    )
