"""Garbage collection for a process whose lasting objects exist when it has started."""

from __future__ import annotations

import gc

_THRESHOLDS = (10_000, 20, 20)
"""Rarer than Python's: steps and imports make thousands of objects and hardly any cycles."""


def collect_seldom() -> None:
    """For the rest of the process. Called first, it spares the imports, too."""
    gc.set_threshold(*_THRESHOLDS)


def keep_what_is_there() -> None:
    """Never look at what exists now again.

    Garbage among it stays for good: collect first where it may be large.
    """
    gc.freeze()
