"""One line that says where and when figures were taken, and whether the machine was quiet."""

from __future__ import annotations

import datetime
import os
import platform
import subprocess
from pathlib import Path

import psutil

_QUIET_LOAD = 0.3
"""Load average per core above which others were at work."""


def conditions() -> str:
    """Date, commit, processor, cores, memory, Python, and the load; call it before measuring."""
    num_cores = len(os.sched_getaffinity(0))
    load = os.getloadavg()[0]
    facts = [
        f"{datetime.datetime.now(datetime.timezone.utc):%Y-%m-%d %H:%M} UTC",
        f"commit {_commit()}",
        f"{_processor()}, {num_cores} cores",
        f"{psutil.virtual_memory().total / 2**30:.0f} GiB",
        f"Python {platform.python_version()}",
        f"load average {load:.1f} before"
        + (" (NOT QUIET: others were at work)" if load > _QUIET_LOAD * num_cores else ""),
    ]
    return "; ".join(facts)


def _commit() -> str:
    command = ["git", "describe", "--always", "--dirty", "--exclude=*"]
    root = Path(__file__).parents[2]
    finished = subprocess.run(command, cwd=root, capture_output=True, text=True, check=False)
    return finished.stdout.strip() or "unknown"


def _processor() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.machine()
