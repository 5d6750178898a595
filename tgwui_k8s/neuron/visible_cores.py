"""Which NeuronCores this process may use, and how it takes exactly as many as it needs.

The runtime reads `NEURON_RT_VISIBLE_CORES` first ("3", "3,4,5" or "0-7", in a row), then
`NEURON_RT_NUM_CORES`; with neither it takes every core of the machine for one process, however
few the model needs. Cores stay with a process until it exits.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, MutableMapping
from dataclasses import dataclass
from pathlib import Path

from tgwui_k8s.errors import UnsupportedModelError
from tgwui_k8s.neuron.instances import CORES_PER_DEVICE, INSTANCES

VISIBLE_CORES = "NEURON_RT_VISIBLE_CORES"
NUM_CORES = "NEURON_RT_NUM_CORES"

_ROOT = Path("/")
_PRODUCT_NAME = "sys/devices/virtual/dmi/id/product_name"


@dataclass(frozen=True)
class Host:
    """What the machine lets this process use."""

    num_cores: int | None
    """None where nothing says: no variable is set and there is no /dev/neuron*."""
    source: str
    """Where the number comes from, for messages."""
    instance: str | None = None
    """The EC2 instance type, where it is one with NeuronCores and the machine tells."""

    @property
    def family(self) -> str | None:
        """inf2 or trn1, where the instance is known."""
        known = {instance.name: instance.family for instance in INSTANCES}
        return known.get(self.instance or "")


def find_host(environ: Mapping[str, str], root: Path = _ROOT) -> Host:
    """What the variables and devices say. Raises `UnsupportedModelError` for a wrong variable."""
    instance = _instance(root)
    present = CORES_PER_DEVICE * sum(1 for _ in (root / "dev").glob("neuron[0-9]*"))
    if visible := environ.get(VISIBLE_CORES, "").strip():
        return Host(_count(visible), f"{VISIBLE_CORES}={visible}", instance)
    if number := _number(environ):
        return Host(number, f"{NUM_CORES}={number}", instance)
    if present:
        return Host(present, f"{present // CORES_PER_DEVICE} devices /dev/neuron*", instance)
    return Host(None, "nothing", instance)


def take_cores(environ: MutableMapping[str, str], tp_degree: int) -> None:
    """Ask the runtime for exactly `tp_degree` cores, unless the operator has said which.

    Must run before anything touches the device.
    """
    if not environ.get(VISIBLE_CORES, "").strip() and not _number(environ):
        environ[NUM_CORES] = str(tp_degree)


def _number(environ: Mapping[str, str]) -> int:
    """`NEURON_RT_NUM_CORES`; 0, which means every core, where it is not set."""
    text = environ.get(NUM_CORES, "").strip() or "0"
    if not text.isdecimal():
        raise UnsupportedModelError(f"{NUM_CORES}={text[:100]} is not a number of cores")
    return int(text)


def _count(visible: str) -> int:
    bounds = re.fullmatch(r"(\d+)\s*-\s*(\d+)", visible)
    if bounds:
        cores = list(range(int(bounds[1]), int(bounds[2]) + 1))
    elif re.fullmatch(r"\d+(\s*,\s*\d+)*", visible):
        cores = sorted(int(part) for part in visible.split(","))
    else:
        cores = []
    if not cores or cores != list(range(cores[0], cores[0] + len(cores))):
        raise UnsupportedModelError(
            f"{VISIBLE_CORES}={visible[:100]} is not a core, or cores in a row, such as 0-7"
        )
    return len(cores)


def _instance(root: Path) -> str | None:
    try:
        name = (root / _PRODUCT_NAME).read_text(encoding="utf-8").strip()
    except (OSError, ValueError):
        return None
    return name if name in {instance.name for instance in INSTANCES} else None
