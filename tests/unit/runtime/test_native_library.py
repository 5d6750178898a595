"""Arrays as the kernels take them."""

from __future__ import annotations

import gc

import numpy as np
import pytest

from tgwui_k8s.errors import IntegrityError
from tgwui_k8s.runtime.native_library import address


def test_an_address_leaves_nothing_for_the_garbage_collector() -> None:
    """Every step takes several, and an engine collects seldom."""
    array = np.arange(4)
    gc.collect()
    gc.disable()
    try:
        assert address(array).value == array.ctypes.data
        assert gc.collect() == 0
    finally:
        gc.enable()


def test_an_array_with_gaps_is_refused() -> None:
    """A kernel would read between the lines."""
    with pytest.raises(IntegrityError, match="contiguous"):
        address(np.zeros((4, 4))[:, :2])
