"""How llama.cpp's threads wait for one another: briefly awake, then asleep.

A step meets some hundred barriers. GNU's OpenMP, which llama.cpp is usually built with, has a
thread watch a barrier for milliseconds before it sleeps. Where the processors are shared, with the
API process to begin with, the one it waits for does not run because it watches: steps took
ten times as long while the server started.
"""

from __future__ import annotations

import os

_SPINS = "1000"
"""What the library itself takes once it knows of more threads than processors: some 50 µs."""


def wait_briefly() -> None:
    """Call before `llama_cpp` is imported: OpenMP reads the environment when it is loaded.

    What the operator says about waiting in the environment stays.
    """
    if "OMP_WAIT_POLICY" not in os.environ:
        os.environ.setdefault("GOMP_SPINCOUNT", _SPINS)
