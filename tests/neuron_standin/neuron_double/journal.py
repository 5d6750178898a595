"""What the double saw: one JSON object per line, appended by every process of a test."""

from __future__ import annotations

import json
import os
from typing import Any

PATH_VARIABLE = "NEURON_STANDIN_JOURNAL"


def record(event: str, **facts: Any) -> None:
    """Append an event; without a journal, forget it.

    Events: construct, load, cores, weights_read, compile, neff_loaded, memory, to_neuron, save,
    forward, sample, violation.
    """
    path = os.environ.get(PATH_VARIABLE)
    if path is None:
        return
    line = json.dumps({"event": event, "pid": os.getpid(), **facts}, default=str) + "\n"
    descriptor = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o666)
    try:
        os.write(descriptor, line.encode())
    finally:
        os.close(descriptor)


def violation(message: str, **facts: Any) -> None:
    """Write down what the library would have swallowed; the test fails when it ends."""
    record("violation", message=message, **facts)


def swallow(where: str, unknown: dict[str, Any]) -> None:
    """Note keyword arguments that have no effect."""
    for name in unknown:
        violation(f"{where}: keyword argument {name!r} has no effect")
