"""What the container may use: processors and memory by cgroup, version 1 or 2; GPUs. No torch.

A pod's limits are its cgroup's; the machine's totals only count where no cgroup sets a limit.
Files: https://docs.kernel.org/admin-guide/cgroup-v2.html and cgroup-v1/memory.html
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

_ROOT = Path("/")


@dataclass(frozen=True, slots=True)
class AvailableMemory:
    """Host memory that can still be taken, in bytes.

    `is_limited` says that a limit was set for us (a cgroup's or the caller's); otherwise the
    memory is shared with whatever else the machine runs.
    """

    num_bytes: int
    is_limited: bool


def cpu_quota(root: Path = _ROOT) -> int:
    """Whole processors this process may use: its cgroup's quota within its affinity; at least 1.

    Rounded down: a compute thread more than the quota has is throttled, and the others wait.
    """
    num_cpus = float(len(os.sched_getaffinity(0)))
    for folder in _cgroup_folders(root, "cpu"):
        words = _read(folder / "cpu.max").split()
        if not words:
            words = [_read(folder / "cpu.cfs_quota_us"), _read(folder / "cpu.cfs_period_us")]
        quota, period = _to_int(words[0]), _to_int(words[1])
        if quota is not None and period:
            num_cpus = min(num_cpus, quota / period)
    return max(1, int(num_cpus))


def cpu_flags(root: Path = _ROOT) -> frozenset[str]:
    """What the processor can do, in the kernel's words (`avx512_bf16`); empty if it is silent."""
    for line in _read(root / "proc/cpuinfo").splitlines():
        name, _, words = line.partition(":")
        if name.strip() in ("flags", "Features"):
            return frozenset(words.split())
    return frozenset()


def has_nvidia_gpu(root: Path = _ROOT) -> bool:
    """Whether the driver shows this container a GPU, and no CUDA_VISIBLE_DEVICES hides it."""
    is_hidden = os.environ.get("CUDA_VISIBLE_DEVICES", "0").strip() in ("", "-1")
    return not is_hidden and any((root / "dev").glob("nvidia[0-9]*"))


def available_memory(limit_bytes: int | None = None, root: Path = _ROOT) -> AvailableMemory:
    """Memory left for this process under the tightest of all limits.

    `limit_bytes` is a limit for this process alone (the setting `memory-limit`). Clean page cache
    counts as free: the kernel gives it back.
    """
    is_limited = False
    num_bytes = _meminfo(root, "MemAvailable")
    for folder in _cgroup_folders(root, "memory"):
        limit = _to_int(_read(folder / "memory.max") or _read(folder / "memory.limit_in_bytes"))
        if limit is not None and limit < _meminfo(root, "MemTotal"):
            is_limited = True
            num_bytes = min(num_bytes, limit - _cgroup_memory_in_use(folder))
    if limit_bytes is not None:
        is_limited = True
        num_bytes = min(num_bytes, limit_bytes - resident_memory(root))
    return AvailableMemory(max(0, num_bytes), is_limited)


def resident_memory(root: Path = _ROOT) -> int:
    """Anonymous and shared memory of this process, in bytes; mapped files do not count."""
    fields = _fields(_read(root / "proc/self/status"))
    return 1024 * (fields.get("RssAnon", 0) + fields.get("RssShmem", 0))


def _cgroup_memory_in_use(folder: Path) -> int:
    """What the cgroup holds and the kernel cannot simply drop."""
    usage = _to_int(_read(folder / "memory.current") or _read(folder / "memory.usage_in_bytes"))
    fields = _fields(_read(folder / "memory.stat"))
    files = fields.get("file", fields.get("total_cache", 0))
    shared = fields.get("shmem", fields.get("total_shmem", 0))
    return max(0, (usage or 0) - (files - shared))


def _cgroup_folders(root: Path, controller: str) -> Iterator[Path]:
    """The process's own cgroup and all above it, in the first hierarchy that is mounted here.

    In a container with its own cgroup namespace the process is in "/"; without one the path is
    the host's and only the mount's own root exists: hence every level is tried.
    """
    for line in _read(root / "proc/self/cgroup").splitlines():
        number, controllers, path = line.split(":", 2)
        if number == "0":
            mount = root / "sys/fs/cgroup"
        elif controller in controllers.split(","):
            mount = root / "sys/fs/cgroup" / controller
        else:
            continue
        folder = mount / path.lstrip("/")
        while folder.is_relative_to(mount):
            if folder.is_dir():
                yield folder
            folder = folder.parent


def _meminfo(root: Path, name: str) -> int:
    return 1024 * _fields(_read(root / "proc/meminfo")).get(name, 0)


def _fields(text: str) -> dict[str, int]:
    """Numbers by name, of lines like `MemTotal:  1000 kB` or `anon 1000`."""
    rows = (line.replace(":", " ").split() for line in text.splitlines())
    return {row[0]: int(row[1]) for row in rows if len(row) > 1 and row[1].isdecimal()}


def _to_int(text: str) -> int | None:
    """The number; None for "max", for v1's -1 and for a file that is not there."""
    return int(text) if text.isdecimal() else None


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8", errors="replace").strip()
    except OSError:
        return ""
