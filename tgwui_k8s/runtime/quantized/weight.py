"""A quantized weight, whatever format it came in: codes, and per group of inputs scale and zero.

    weight[output, input] = (code[output, input] - zero[output, group]) * scale[output, group]

Formats are read into this form, kernels are packed from it, one layer at a time.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch


@dataclass(frozen=True, eq=False)
class QuantizedWeight:
    """One linear layer's weight; groups are consecutive inputs, `group_size` of them each.

    `codes` uint8 [outputs, inputs], below 2**bits; `scales` floating point [outputs, groups];
    `zeros` uint8 [outputs, groups]. Where `order` (int64 [inputs]) is not None the columns of
    `codes` stand in that order of the layer's inputs: column i belongs to input `order[i]`.
    """

    codes: torch.Tensor
    scales: torch.Tensor
    zeros: torch.Tensor
    bits: int
    order: torch.Tensor | None = None

    @property
    def num_outputs(self) -> int:
        """Rows of the weight."""
        return self.codes.shape[0]

    @property
    def num_inputs(self) -> int:
        """Columns of the weight."""
        return self.codes.shape[1]

    @property
    def group_size(self) -> int:
        """Inputs that share a scale."""
        return self.num_inputs // self.scales.shape[1]

    def to(self, device: torch.device) -> QuantizedWeight:
        """The same on a device."""
        order = None if self.order is None else self.order.to(device)
        codes, scales, zeros = (part.to(device) for part in (self.codes, self.scales, self.zeros))
        return QuantizedWeight(codes, scales, zeros, self.bits, order)

    def dequantize(self) -> torch.Tensor:
        """The weight [outputs, inputs] in the type of the scales, columns in the layer's order.

        Each number is rounded once, in the multiplication: the formula of AutoAWQ and AutoGPTQ.
        """
        grouped = self.codes.unflatten(1, (-1, self.group_size)).to(torch.int16)
        steps = grouped - self.zeros.unsqueeze(-1).to(torch.int16)
        weight = (steps.to(self.scales.dtype) * self.scales.unsqueeze(-1)).flatten(1)
        if self.order is None:
            return weight
        restored = torch.empty_like(weight)
        restored[:, self.order] = weight
        return restored


def quantize(weight: torch.Tensor, *, bits: int, group_size: int) -> QuantizedWeight:
    """Round a weight [outputs, inputs] to the nearest code, each group from its least to its
    greatest value; zero is always exact.

    `group_size` must divide the inputs. Scales are float16, as in AWQ checkpoints.
    """
    levels = 2**bits - 1
    groups = weight.float().unflatten(1, (-1, group_size))
    low = groups.amin(-1).clamp(max=0)
    high = groups.amax(-1).clamp(min=0)
    scales = ((high - low) / levels).clamp(min=torch.finfo(torch.float16).tiny).half()
    steps = scales.float().unsqueeze(-1)
    zeros = (-low.unsqueeze(-1) / steps).round().clamp(0, levels)
    codes = (groups / steps).round().add(zeros).clamp(0, levels)
    return QuantizedWeight(
        codes.flatten(1).to(torch.uint8), scales, zeros.squeeze(-1).to(torch.uint8), bits
    )
