"""Garbage collection for a process whose lasting objects exist when loading is done."""

from __future__ import annotations

import gc

_THRESHOLDS = (10_000, 20, 20)
"""Rarer than Python's: a step makes thousands of objects and hardly any cycles."""


def settle_garbage_collector() -> None:
    """What exists now stays: never look at it again, and seldom at what comes."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(*_THRESHOLDS)
