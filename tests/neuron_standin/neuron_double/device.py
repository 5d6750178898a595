"""The cores of one host, shared out among processes through lock files, and their memory."""

from __future__ import annotations

import fcntl
import os
import re
import threading
import time
from pathlib import Path

from neuron_double.journal import record, violation

CORES = {
    "inf2.xlarge": 2,
    "inf2.8xlarge": 2,
    "inf2.24xlarge": 12,
    "inf2.48xlarge": 24,
    "trn1.2xlarge": 2,
    "trn1.32xlarge": 32,
    "trn1n.32xlarge": 32,
}
TOPOLOGIES = {"inf2": (1, 2, 4, 8, 12, 24), "trn1": (1, 2, 8, 16, 32)}


class Device:
    """What this process holds of the host: cores until it exits, memory while a model lives."""

    def __init__(self) -> None:
        self.cores: tuple[int, ...] = ()
        self._locks: list[int] = []
        self._used: dict[int, int] = {}
        self._pid: int | None = None
        self._wanted: tuple[str | None, str | None] = (None, None)
        self._runs = 0
        self._guard = threading.Lock()

    @property
    def instance(self) -> str:
        """The instance type of the host."""
        return os.environ.get("NEURON_STANDIN_INSTANCE", "inf2.24xlarge")

    def claim(self, tp_degree: int) -> None:
        """Take the cores that the environment names, once per process, and check the topology.

        Raises RuntimeError with the runtime's words: not available, not contiguous, unsupported.
        """
        with self._guard:
            if self._pid is None:
                self._take(tp_degree)
            elif self._wanted != _wanted_cores():
                violation("NEURON_RT_* was changed after the device was touched, without effect")
        self.check_process()
        family = self.instance.split(".")[0].removesuffix("n")
        if tp_degree not in TOPOLOGIES[family]:
            supported = ", ".join(str(degree) for degree in TOPOLOGIES[family])
            raise RuntimeError(
                f"Unsupported topology. Supported number of Neuron Cores is {supported}"
            )
        if tp_degree > len(self.cores):
            first, last = self.cores[-1] + 1, self.cores[0] + tp_degree - 1
            raise RuntimeError(_not_available(f"nc{first}-nc{last}", 0))

    def check_process(self) -> None:
        """Raises RuntimeError in a process forked from the one that holds the cores."""
        if self._pid != os.getpid():
            violation("a forked process touched the device of its parent")
            raise RuntimeError("nrt: NRT_UNINITIALIZED status=13 (device held by another process)")

    def run(self) -> None:
        """A graph runs. Raises RuntimeError once the device is broken, and in a forked process."""
        self.check_process()
        time.sleep(float(os.environ.get("NEURON_STANDIN_STEP_SECONDS", 0)))
        self._runs += 1
        if self._runs > float(os.environ.get("NEURON_STANDIN_BREAKS_AFTER", "inf")):
            raise RuntimeError("nrt_execute status=101 (NRT_EXEC_UNIT_UNRECOVERABLE)")

    def allocate(self, owner: int, num_bytes: int, tp_degree: int) -> None:
        """Charge a model's memory. Raises RuntimeError when its cores do not hold it."""
        core_bytes = int(os.environ.get("NEURON_STANDIN_CORE_BYTES", 16 << 30))
        used = sum(size for other, size in self._used.items() if other != owner)
        record("memory", bytes=num_bytes, limit=core_bytes * tp_degree)
        if used + num_bytes > core_bytes * tp_degree:
            raise RuntimeError('nrt_load_collectives status=4 message="Allocation Failure"')
        self._used[owner] = num_bytes

    def free(self, owner: int) -> None:
        """Give back a model's memory; the cores stay with the process."""
        self._used.pop(owner, None)

    def release(self) -> None:
        """What the end of the process does; for tests that play several in one."""
        for descriptor in self._locks:
            os.close(descriptor)
        self.__init__()

    def _take(self, tp_degree: int) -> None:
        present = CORES[self.instance]
        visible = os.environ.get("NEURON_RT_VISIBLE_CORES")
        number = int(os.environ.get("NEURON_RT_NUM_CORES") or 0)
        if visible:
            wanted = _parse_cores(visible)
            if wanted[-1] >= present:
                raise RuntimeError("TDRV:tdrv_get_dev_info No neuron device available")
            held = [core for core in wanted if self._lock(core)]
            missing = [core for core in wanted if core not in held]
        else:
            wanted = list(range(number or present))
            held = []
            for core in range(present):
                if len(held) < len(wanted) and self._lock(core):
                    held.append(core)
            missing = wanted[len(held) :]
        if missing:
            self.release()
            raise RuntimeError(_not_available(f"nc{missing[0]}-nc{missing[-1]}", len(held)))
        if not visible and not number and len(held) > tp_degree:
            violation(f"took all {len(held)} cores of the host for tp_degree {tp_degree}")
        self.cores, self._pid, self._wanted = tuple(held), os.getpid(), _wanted_cores()
        record("cores", cores=held)

    def _lock(self, core: int) -> bool:
        folder = os.environ.get("NEURON_STANDIN_CORES")
        if folder is None:
            return True
        flags = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC
        descriptor = os.open(Path(folder) / f"core-{core:02}.lock", flags, 0o666)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(descriptor)
            return False
        self._locks.append(descriptor)
        return True


def _wanted_cores() -> tuple[str | None, str | None]:
    return os.environ.get("NEURON_RT_VISIBLE_CORES"), os.environ.get("NEURON_RT_NUM_CORES")


def _not_available(requested: str, available: int) -> str:
    return (
        "nrt_allocate_neuron_cores NeuronCore(s) not available - "
        f"Requested:{requested} Available:{available}"
    )


def _parse_cores(text: str) -> list[int]:
    """A core "3", a list "3,4,5" or an inclusive range "0-7"."""
    if bounds := re.fullmatch(r"(\d+)-(\d+)", text):
        return list(range(int(bounds[1]), int(bounds[2]) + 1))
    cores = sorted(int(part) for part in text.split(","))
    if cores != list(range(cores[0], cores[-1] + 1)):
        raise RuntimeError("Neuron cores are not contiguous")
    return cores


device = Device()
