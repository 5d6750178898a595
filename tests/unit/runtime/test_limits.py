"""Limits of the container, read from a made-up file tree."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tgwui_k8s.runtime.limits import (
    available_memory,
    cpu_quota,
    has_nvidia_gpu,
    resident_memory,
)

GIB = 1 << 30
MEMINFO = f"MemTotal: {16 * 1024**2} kB\nMemAvailable: {10 * 1024**2} kB\nHugePages_Total: 0\n"
STATUS = f"Name:\tpython\nRssAnon:\t {1024**2} kB\nRssFile:\t 99 kB\nRssShmem:\t 0 kB\n"


def write_tree(root: Path, files: dict[str, str]) -> Path:
    """Files below `root`, with a machine of 16 GiB of which 10 are free as background."""
    for name, text in {"proc/meminfo": MEMINFO, "proc/self/status": STATUS, **files}.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return root


@pytest.fixture(autouse=True)
def eight_cpus(monkeypatch: pytest.MonkeyPatch) -> None:
    """An affinity of eight processors."""
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(8)))


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        ({}, 8),
        ({"proc/self/cgroup": "0::/", "sys/fs/cgroup/cpu.max": "max 100000"}, 8),
        ({"proc/self/cgroup": "0::/", "sys/fs/cgroup/cpu.max": "250000 100000"}, 2),
        ({"proc/self/cgroup": "0::/", "sys/fs/cgroup/cpu.max": "50000 100000"}, 1),
        (
            {
                "proc/self/cgroup": "0::/pod/container",
                "sys/fs/cgroup/pod/container/cpu.max": "max 100000",
                "sys/fs/cgroup/pod/cpu.max": "300000 100000",
            },
            3,
        ),
        (
            {
                "proc/self/cgroup": "5:cpu,cpuacct:/kubepods/x\n1:name=systemd:/",
                "sys/fs/cgroup/cpu/cpu.cfs_quota_us": "400000",
                "sys/fs/cgroup/cpu/cpu.cfs_period_us": "100000",
            },
            4,
        ),
        (
            {
                "proc/self/cgroup": "5:cpu:/",
                "sys/fs/cgroup/cpu/cpu.cfs_quota_us": "-1",
                "sys/fs/cgroup/cpu/cpu.cfs_period_us": "100000",
            },
            8,
        ),
    ],
)
def test_threads_follow_the_cgroup_quota(
    tmp_path: Path, files: dict[str, str], expected: int
) -> None:
    """Version 1 and 2, limits on any level, fractions rounded down, never below one."""
    assert cpu_quota(write_tree(tmp_path, files)) == expected


def test_memory_without_a_limit_is_what_the_machine_has_left(tmp_path: Path) -> None:
    """And it is marked as shared with others."""
    available = available_memory(root=write_tree(tmp_path, {}))
    assert available.num_bytes == 10 * GIB
    assert not available.is_limited


def test_memory_follows_the_cgroup_limit_less_what_is_in_use(tmp_path: Path) -> None:
    """Clean page cache counts as free, shared memory does not."""
    root = write_tree(
        tmp_path,
        {
            "proc/self/cgroup": "0::/",
            "sys/fs/cgroup/memory.max": str(8 * GIB),
            "sys/fs/cgroup/memory.current": str(6 * GIB),
            "sys/fs/cgroup/memory.stat": f"anon {GIB}\nfile {4 * GIB}\nshmem {GIB}\n",
        },
    )
    available = available_memory(root=root)
    assert available.num_bytes == 5 * GIB
    assert available.is_limited


def test_memory_follows_a_version_1_cgroup(tmp_path: Path) -> None:
    """The file names differ, the arithmetic does not."""
    root = write_tree(
        tmp_path,
        {
            "proc/self/cgroup": "8:memory:/docker/abc",
            "sys/fs/cgroup/memory/memory.limit_in_bytes": str(4 * GIB),
            "sys/fs/cgroup/memory/memory.usage_in_bytes": str(3 * GIB),
            "sys/fs/cgroup/memory/memory.stat": f"cache 0\ntotal_cache {GIB}\ntotal_shmem 0\n",
        },
    )
    assert available_memory(root=root).num_bytes == 2 * GIB


def test_a_cgroup_limit_above_the_machine_is_no_limit(tmp_path: Path) -> None:
    """Version 1 says "unlimited" with a huge number."""
    root = write_tree(
        tmp_path,
        {
            "proc/self/cgroup": "8:memory:/",
            "sys/fs/cgroup/memory/memory.limit_in_bytes": "9223372036854771712",
            "sys/fs/cgroup/memory/memory.usage_in_bytes": str(3 * GIB),
        },
    )
    assert not available_memory(root=root).is_limited


@pytest.mark.parametrize(
    ("devices", "visible", "expected"),
    [
        (["nvidia0", "nvidiactl"], None, True),
        (["nvidia0"], "0,1", True),
        (["nvidia0"], "", False),
        (["nvidia0"], "-1", False),
        (["nvidiactl", "nvidia-uvm"], None, False),
        ([], None, False),
    ],
)
def test_a_gpu_is_seen_by_its_device(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    devices: list[str],
    visible: str | None,
    expected: bool,
) -> None:
    """Without asking a library of gigabytes."""
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    if visible is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    (tmp_path / "dev").mkdir()
    for name in devices:
        (tmp_path / "dev" / name).touch()
    assert has_nvidia_gpu(tmp_path) is expected


@pytest.mark.parametrize(("limit", "expected"), [(3 * GIB, 2 * GIB), (GIB // 2, 0)])
def test_an_explicit_limit_is_for_this_process_alone(
    tmp_path: Path, limit: int, expected: int
) -> None:
    """What the process already holds is taken off; the result is never negative."""
    available = available_memory(limit, root=write_tree(tmp_path, {}))
    assert available.num_bytes == expected
    assert available.is_limited


def test_the_real_machine_has_memory_and_processors() -> None:
    """On the machine that runs the tests the files exist and make sense."""
    assert available_memory().num_bytes > 0
    assert resident_memory() > 1 << 20
    assert cpu_quota() >= 1
