"""The names that `amp` accepts."""

from __future__ import annotations

from typing import Any

import torch

DTYPES = {"f32": torch.float32, "f16": torch.float16, "bf16": torch.bfloat16}


def to_torch_dtype(amp: Any) -> torch.dtype:
    """KeyError for an unknown name; TypeError for what is no string.

    The legacy form "<dtype>-u8-<dtype>" is computed in its first type.
    """
    if "-u8-" in amp:
        amp = amp.split("-")[0]
    return DTYPES[amp]
