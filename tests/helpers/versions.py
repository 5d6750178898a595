"""Tests whose subject, or whose oracle, needs a newer library than AWS's Neuron image has."""

from __future__ import annotations

from importlib.metadata import version

import pytest
from packaging.version import Version


def needs_transformers(oldest: str) -> pytest.MarkDecorator:
    """Skip below this version: the loader under test refuses it, or the oracle differs."""
    is_old = Version(version("transformers")) < Version(oldest)
    return pytest.mark.skipif(is_old, reason=f"needs transformers>={oldest}")
