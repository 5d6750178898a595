"""Tests whose subject, or whose oracle, needs a newer library than AWS's Neuron image has."""

from __future__ import annotations

from importlib.metadata import version

import pytest
import torch
from packaging.version import Version


def needs_transformers(oldest: str) -> pytest.MarkDecorator:
    """Skip below this version: the loader under test refuses it, or the oracle differs."""
    is_old = Version(version("transformers")) < Version(oldest)
    return pytest.mark.skipif(is_old, reason=f"needs transformers>={oldest}")


def in_dtype(dtype: torch.dtype) -> dict[str, torch.dtype]:
    """The argument of `from_pretrained` under the name that the installed version knows."""
    is_old = Version(version("transformers")) < Version("4.56")
    return {"torch_dtype" if is_old else "dtype": dtype}
