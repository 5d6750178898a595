"""Tests whose subject, or whose oracle, needs a newer library than AWS's Neuron image has."""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING

import pytest
from packaging.version import Version

if TYPE_CHECKING:
    import torch


def needs_transformers(oldest: str) -> pytest.MarkDecorator:
    """Skip below this version: the loader under test refuses it, or the oracle differs."""
    return pytest.mark.skipif(_is_older(oldest), reason=f"needs transformers>={oldest}")


def in_dtype(dtype: torch.dtype) -> dict[str, torch.dtype]:
    """The argument of `from_pretrained` under the name that the installed version knows."""
    return {"torch_dtype" if _is_older("4.56") else "dtype": dtype}


def _is_older(oldest: str) -> bool:
    try:
        return Version(version("transformers")) < Version(oldest)
    except PackageNotFoundError:
        return True
