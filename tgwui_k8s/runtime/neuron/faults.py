"""What the Neuron runtime and compiler say when they fail, as errors that name the remedy.

Their texts are those of the runtime's documentation and of its users' reports.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager

from tgwui_k8s.errors import NotEnoughMemoryError, StartupError, UnsupportedModelError

_REMEDIES: tuple[tuple[str, type[StartupError], str], ...] = (
    (
        r"not available|NC_BUSY|status=1005|NOT_ENOUGH_NC",
        StartupError,
        "another process holds the NeuronCores, perhaps one that is still ending; they are free "
        "when it has exited (in Kubernetes: strategy Recreate, or maxSurge 0)",
    ),
    (
        r"Allocation Failure|status=4\b|exceeds \d+GB",
        NotEnoughMemoryError,
        "the device memory is too small: lower batch_size or n_positions, or raise tp_degree; "
        "'tgwui-k8s neuron plan' shows what fits",
    ),
    (
        r"No neuron device",
        UnsupportedModelError,
        "no NeuronCore is here: the pod must request aws.amazon.com/neuron on an inf2 or trn1 node",
    ),
    (
        r"not contiguous|Unsupported topology",
        UnsupportedModelError,
        "these cores cannot hold one model: see tp_degree and NEURON_RT_VISIBLE_CORES",
    ),
    (
        r"NEFF version|features: 0x|UNSUPPORTED_NEFF",
        UnsupportedModelError,
        "the runtime is older than the compiler: use one image to compile and to serve",
    ),
    (
        r"Failed compilation",
        StartupError,
        "the compiler failed, often for want of host memory: set compile_workers lower, or "
        "compile on a larger machine with 'tgwui-k8s neuron compile --cpu-only'",
    ),
    (
        r"matching NEFF|Did not find directory",
        StartupError,
        "a compiled graph is missing: the artifacts were compiled otherwise than their manifest "
        "says; compile again",
    ),
)


@contextmanager
def explained(what: str) -> Iterator[None]:
    """Turn the library's exceptions into a `StartupError`; `what` says what was tried.

    Even `StopIteration`, which must never reach a generator or an event loop.
    """
    try:
        yield
    except (StartupError, MemoryError):
        raise
    except Exception as error:
        text = " ".join(f"{type(error).__name__}: {error}".split())[:500]
        for pattern, kind, remedy in _REMEDIES:
            if re.search(pattern, text):
                raise kind(f"{what} failed: {remedy} ({text})") from error
        raise StartupError(f"{what} failed: {text}") from error
