"""Products with quantized weights on CUDA: one Triton kernel, written for decoding.

Few rows, and every weight read once: each program takes a strip of outputs and a share of the
inputs, expands codes in registers and multiplies on tensor cores. Shares are added afterwards in a
fixed order, so that a result does not depend on timing. With many rows (prefill) the weight is
expanded once for all of them and cuBLAS multiplies.

    words   int32 [inputs/per_word, outputs]   per_word = 32/bits inputs of one output, lowest first
    scales  [groups, outputs] in their own type
    zeros   uint8 [groups, outputs]
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl

from tgwui_k8s.runtime.quantized.weight import QuantizedWeight

_MAX_ROWS = 64
"""More rows than this make the product a matter of arithmetic, which cuBLAS does best."""
_BLOCK_WORDS = 16
"""Words of one step along the inputs: the least depth that tensor cores take."""
_BLOCK_OUTPUTS = 64
_TARGET_PROGRAMS = 512
"""Enough for every multiprocessor of a large GPU to have several."""


class TritonProduct:
    """One layer's weight on a GPU (or on a CPU, under Triton's interpreter)."""

    def __init__(self, weight: QuantizedWeight) -> None:
        """`weight.group_size` must be a multiple of 8."""
        self._per_word = 32 // weight.bits
        self._bits = weight.bits
        self._words = _pack_words(weight.codes, weight.bits)
        self._scales = weight.scales.t().contiguous()
        self._zeros = weight.zeros.t().contiguous()
        self._group_size = weight.group_size

    @property
    def num_bytes(self) -> int:
        """Memory that the weight takes."""
        return self._words.nbytes + self._scales.nbytes + self._zeros.nbytes

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        """x [rows, inputs] times the weight: [rows, outputs] in x's type."""
        if x.shape[0] > _MAX_ROWS:
            return x @ self._expand(x.dtype)
        num_words, num_outputs = self._words.shape
        num_strips = triton.cdiv(num_outputs, _BLOCK_OUTPUTS)
        num_steps = triton.cdiv(num_words, _BLOCK_WORDS)
        num_shares = max(1, min(num_steps, _TARGET_PROGRAMS // num_strips))
        steps_per_share = triton.cdiv(num_steps, num_shares)
        num_shares = triton.cdiv(num_steps, steps_per_share)
        sums = torch.empty(
            num_shares, x.shape[0], num_outputs, dtype=torch.float32, device=x.device
        )
        kernel: Any = _multiply
        kernel[(num_strips, num_shares)](
            x.contiguous(),
            self._words,
            self._scales,
            self._zeros,
            sums,
            x.shape[0],
            num_words,
            num_outputs,
            self._group_size,
            steps_per_share,
            BITS=self._bits,
            PER_WORD=self._per_word,
            BLOCK_ROWS=max(16, triton.next_power_of_2(x.shape[0])),
            BLOCK_WORDS=_BLOCK_WORDS,
            BLOCK_OUTPUTS=_BLOCK_OUTPUTS,
            PRECISION="ieee" if x.dtype == torch.float32 else "tf32",
        )
        return sums.sum(0).to(x.dtype)

    def _expand(self, dtype: torch.dtype) -> torch.Tensor:
        """The weight [inputs, outputs]."""
        places = torch.arange(self._per_word, dtype=torch.int32, device=self._words.device)
        shifts = (self._bits * places).view(1, -1, 1)
        codes = (self._words.unsqueeze(1) >> shifts) & (2**self._bits - 1)
        grouped = codes.flatten(0, 1).unflatten(0, (-1, self._group_size))
        steps = (grouped - self._zeros.unsqueeze(1)).to(dtype)
        return (steps * self._scales.to(dtype).unsqueeze(1)).flatten(0, 1)


def _pack_words(codes: torch.Tensor, bits: int) -> torch.Tensor:
    """uint8 [outputs, inputs] to int32 [inputs/per_word, outputs]."""
    per_word = 32 // bits
    parts = codes.t().unflatten(0, (-1, per_word))
    words = torch.zeros(parts.shape[0], parts.shape[2], dtype=torch.int32, device=codes.device)
    for place in range(per_word):
        words |= parts[:, place].int() << (bits * place)
    return words


@triton.jit
def _multiply(  # noqa: PLR0913 - a kernel's arguments are its interface
    x_pointer,
    words_pointer,
    scales_pointer,
    zeros_pointer,
    sums_pointer,
    num_rows,
    num_words,
    num_outputs,
    group_size,
    steps_per_share,
    BITS: tl.constexpr,  # noqa: N803 - Triton's custom for constants
    PER_WORD: tl.constexpr,  # noqa: N803
    BLOCK_ROWS: tl.constexpr,  # noqa: N803
    BLOCK_WORDS: tl.constexpr,  # noqa: N803
    BLOCK_OUTPUTS: tl.constexpr,  # noqa: N803
    PRECISION: tl.constexpr,  # noqa: N803
):
    """sums[share, row, output] over the inputs of the program's share; see the module."""
    rows = tl.arange(0, BLOCK_ROWS)
    outputs = tl.program_id(0) * BLOCK_OUTPUTS + tl.arange(0, BLOCK_OUTPUTS)
    share = tl.program_id(1)
    is_row = rows[:, None] < num_rows
    is_output = outputs[None, :] < num_outputs
    total = tl.zeros((BLOCK_ROWS, BLOCK_OUTPUTS), dtype=tl.float32)
    for step in range(steps_per_share):
        words_at = (share * steps_per_share + step) * BLOCK_WORDS + tl.arange(0, BLOCK_WORDS)
        is_word = words_at < num_words
        mask = is_word[:, None] & is_output
        words = tl.load(
            words_pointer + words_at[:, None] * num_outputs + outputs[None, :], mask=mask, other=0
        )
        groups = words_at * PER_WORD // group_size
        at = groups[:, None] * num_outputs + outputs[None, :]
        scales = tl.load(scales_pointer + at, mask=mask, other=0.0).to(tl.float32)
        zeros = tl.load(zeros_pointer + at, mask=mask, other=0).to(tl.int32)
        for place in tl.static_range(PER_WORD):
            inputs_at = words_at * PER_WORD + place
            x = tl.load(
                x_pointer + rows[:, None] * (num_words * PER_WORD) + inputs_at[None, :],
                mask=is_row & is_word[None, :],
                other=0.0,
            )
            codes = (words >> (BITS * place)) & ((1 << BITS) - 1)
            weight = ((codes - zeros).to(tl.float32) * scales).to(x.dtype)
            total = tl.dot(x, weight, total, input_precision=PRECISION)
    sums_at = (share * num_rows + rows[:, None]) * num_outputs + outputs[None, :]
    tl.store(sums_pointer + sums_at, total, mask=is_row & is_output)
