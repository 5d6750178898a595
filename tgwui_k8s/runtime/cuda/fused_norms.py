"""RMS norms in one operator instead of eight.

Transformers writes them out step by step, and at one token a step each costs a launch. A norm is
only taken over where PyTorch's own, one kernel on CUDA since 2.9, gives what the module gives:
there are others of that name, such as Gemma's, which adds 1 to the weight.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable

import torch
from torch import nn

_TRIAL_ROWS = 4
_ROUNDINGS = 4
"""The module rounds once more than the kernel, which keeps float32 up to the end."""


def fuse_norms(model: nn.Module) -> int:
    """Replace the forward of all RMS norms that can be fused, and say how many those are."""
    number = 0
    for module in model.modules():
        fused = _fused(module)
        if fused is not None:
            module.forward = fused
            number += 1
    return number


@torch.inference_mode()
def _fused(module: nn.Module) -> Callable[[torch.Tensor], torch.Tensor] | None:
    """The norm as PyTorch's, or None where the module is none or differs from it."""
    weight = getattr(module, "weight", None)
    eps = getattr(module, "variance_epsilon", getattr(module, "eps", None))
    if not (
        type(module).__name__.endswith("RMSNorm")
        and isinstance(weight, torch.Tensor)
        and isinstance(eps, float)
        and len(inspect.signature(module.forward).parameters) == 1
    ):
        return None
    fused = functools.partial(
        nn.functional.rms_norm, normalized_shape=weight.shape, weight=weight, eps=eps
    )
    trial = torch.randn(_TRIAL_ROWS, *weight.shape, device=weight.device).to(weight.dtype)
    tolerance = _ROUNDINGS * torch.finfo(weight.dtype).eps
    is_same = torch.allclose(fused(trial), module(trial), rtol=tolerance, atol=tolerance)
    return fused if is_same else None
