"""Hooks for places: a tensor goes where the model is, and CUDA is left alone where it is not.

Upstream calls `.cuda()` wherever `--cpu` is not given.
"""

from __future__ import annotations

import importlib
from typing import Any


def place(tensor: Any, model: Any) -> Any:
    """Instead of `tensor.cuda()`: to the model's device; to CUDA only for models that are there.

    A model that does not say where it is gets CUDA where there is one, as upstream has it.
    """
    device = getattr(model, "device", None)
    kind = getattr(device, "type", None) or str(device or "").partition(":")[0]
    if device is not None and kind not in ("cuda", "") and not kind.isdigit():
        return tensor.to(device)
    return tensor.cuda() if _has_cuda() else tensor


def empty_cache() -> None:
    """Instead of `torch.cuda.empty_cache()`: nothing where CUDA was never used."""
    cuda: Any = importlib.import_module("torch").cuda
    if cuda.is_initialized():
        cuda.empty_cache()


def _has_cuda() -> bool:
    return bool(importlib.import_module("torch").cuda.is_available())
