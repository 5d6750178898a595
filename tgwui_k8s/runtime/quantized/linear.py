"""A linear layer whose weight stays quantized in memory, and the choice of its kernel.

CPU    native/codes_linear.h (native.py)
CUDA   our Triton kernel (triton_product.py)
else   the weight is expanded once, at load: as fast and as large as an unquantized model
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from functools import partial
from typing import Protocol

import torch
from torch import nn

from tgwui_k8s.errors import IntegrityError
from tgwui_k8s.runtime.native_library import why_unavailable
from tgwui_k8s.runtime.quantized import native
from tgwui_k8s.runtime.quantized.weight import QuantizedWeight

logger = logging.getLogger(__name__)


class Product(Protocol):
    """A packed weight that multiplies."""

    @property
    def num_bytes(self) -> int:
        """Memory that the weight takes."""
        ...

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        """x [rows, inputs] times the weight: [rows, outputs] in x's type."""
        ...


MakeProduct = Callable[[QuantizedWeight], Product]


class ExpandedProduct:
    """The fallback: the weight in the type the model computes in."""

    def __init__(self, weight: QuantizedWeight, dtype: torch.dtype) -> None:
        if weight.order is not None:  # `QuantizedLinear` sorts the inputs
            weight = QuantizedWeight(weight.codes, weight.scales, weight.zeros, weight.bits)
        self._weight = weight.dequantize().to(dtype)

    @property
    def num_bytes(self) -> int:
        """Memory that the weight takes."""
        return self._weight.nbytes

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        """See `Product`."""
        return nn.functional.linear(x, self._weight)


def choose_product(device: torch.device, dtype: torch.dtype, num_threads: int) -> MakeProduct:
    """How weights are multiplied on this device; says so once where that is the fallback."""
    reason = why_unavailable() if device.type == "cpu" else _why_no_triton()
    if reason is not None:
        logger.warning("quantized weights are expanded to %s: %s", dtype, reason)
        return lambda weight: ExpandedProduct(weight, dtype)
    if device.type == "cpu":
        team = native.Team(num_threads)
        return partial(_native_or_expanded, team, dtype)
    from tgwui_k8s.runtime.quantized.triton_product import TritonProduct

    return TritonProduct


def _native_or_expanded(team: native.Team, dtype: torch.dtype, weight: QuantizedWeight) -> Product:
    if native.fits(weight):
        return native.NativeProduct(weight, team)
    logger.warning("a weight with %d inputs is expanded to %s", weight.num_inputs, dtype)
    return ExpandedProduct(weight, dtype)


def expands_weights(device: torch.device) -> bool:
    """Whether quantized weights take as much memory as unquantized ones there."""
    return (why_unavailable() if device.type == "cpu" else _why_no_triton()) is not None


def _why_no_triton() -> str | None:
    try:
        import triton  # noqa: F401
    except ImportError as error:
        return f"Triton cannot be imported: {error}"
    return None


class QuantizedLinear(nn.Module):
    """Stands where an `nn.Linear` stood; `set_weight` must be called before it computes."""

    def __init__(self, in_features: int, out_features: int, *, bias: bool) -> None:
        super().__init__()
        self.in_features = in_features
        self.out_features = out_features
        self.bias = nn.Parameter(torch.empty(out_features)) if bias else None
        self._product: Product | None = None
        self._order: torch.Tensor | None = None

    @property
    def weight_bytes(self) -> int:
        """Memory that the weight takes; 0 before it is set."""
        return 0 if self._product is None else self._product.num_bytes

    def set_weight(self, weight: QuantizedWeight, make_product: MakeProduct) -> None:
        """Pack the weight, whose shape must be the layer's."""
        if (weight.num_outputs, weight.num_inputs) != (self.out_features, self.in_features):
            raise IntegrityError("a quantized weight does not have its layer's shape")
        self._product = make_product(weight)
        self._order = weight.order

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """x [..., in_features] to [..., out_features]."""
        if self._product is None:
            raise IntegrityError("a quantized layer has no weight")
        rows = x.reshape(-1, self.in_features)
        if self._order is not None:
            rows = rows[:, self._order]
        output = self._product(rows).view(*x.shape[:-1], self.out_features)
        return output if self.bias is None else output + self.bias
