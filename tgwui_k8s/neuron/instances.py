"""The machines with NeuronCores of the second generation: sizes, memory, and how models may lie.

Figures: AWS's instance pages and Karpenter's instance types; topologies: the runtime's own errors
("Unsupported topology") and the Neuron guides, of which the wider reading is taken.
"""

from __future__ import annotations

from dataclasses import dataclass

from tgwui_k8s.errors import UnsupportedModelError

GIB = 1 << 30
CORES_PER_DEVICE = 2
CORE_BYTES = 16 * GIB
"""Device memory of one NeuronCore."""

TP_DEGREES: dict[str, tuple[int, ...]] = {
    "inf2": (1, 2, 4, 8, 12, 24),
    "trn1": (1, 2, 8, 16, 32),
}
"""Over how many cores the runtime lets one model lie, by family."""

_DEVICE_COUNTS: dict[str, tuple[int, ...]] = {
    "inf2": tuple(range(1, 13)),
    "trn1": (1, 4, 8, 16),
}
"""How many neighbouring devices of a shared node one pod can have."""


@dataclass(frozen=True)
class Instance:
    """One size of machine. A device (chip) holds two cores."""

    name: str
    num_devices: int
    num_cpus: int
    host_bytes: int

    @property
    def family(self) -> str:
        """The key of `TP_DEGREES`: inf2, or trn1 for trn1n as well."""
        return self.name.split(".")[0].removesuffix("n")

    @property
    def num_cores(self) -> int:
        """NeuronCores in all."""
        return self.num_devices * CORES_PER_DEVICE

    @property
    def tp_degrees(self) -> tuple[int, ...]:
        """The tensor-parallel degrees that this machine can run."""
        return tuple(degree for degree in TP_DEGREES[self.family] if degree <= self.num_cores)


INSTANCES: tuple[Instance, ...] = (
    Instance("inf2.xlarge", 1, 4, 16 * GIB),
    Instance("inf2.8xlarge", 1, 32, 128 * GIB),
    Instance("inf2.24xlarge", 6, 96, 384 * GIB),
    Instance("inf2.48xlarge", 12, 192, 768 * GIB),
    Instance("trn1.2xlarge", 1, 8, 32 * GIB),
    Instance("trn1.32xlarge", 16, 128, 512 * GIB),
    Instance("trn1n.32xlarge", 16, 128, 512 * GIB),
)


def find_instance(name: str) -> Instance:
    """The machine of this name. Raises `UnsupportedModelError` that lists those there are."""
    for instance in INSTANCES:
        if instance.name == name.strip().lower():
            return instance
    known = ", ".join(instance.name for instance in INSTANCES)
    raise UnsupportedModelError(
        f"instance type '{name[:100]}' is not one with NeuronCores of inf2 or trn1: {known}; "
        "trn2 and trn3 are served by the vLLM loader"
    )


def allowed_tp_degrees(family: str | None) -> tuple[int, ...]:
    """The degrees of a family; of any family where the machine does not say what it is."""
    if family is not None:
        return TP_DEGREES[family]
    return tuple(sorted({degree for degrees in TP_DEGREES.values() for degree in degrees}))


def devices_for(tp_degree: int, family: str) -> int:
    """Devices (`aws.amazon.com/neuron`) a pod must request to get so many cores in a row."""
    needed = -(-tp_degree // CORES_PER_DEVICE)
    return min(count for count in _DEVICE_COUNTS[family] if count >= needed)
