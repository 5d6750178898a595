"""The first touch of the device."""

from __future__ import annotations

from neuron_double.device import device


def init(tp_degree: int) -> None:
    """Take the cores of this process."""
    device.claim(tp_degree)
