"""A network file system's stand-in: a read-only FUSE mount that delivers so many bytes a second."""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


def why_not() -> str | None:
    """What is missing for `slow_mount`; None where it works."""
    if shutil.which("bindfs") is None:
        return "needs bindfs (see .ci/packages)"
    if os.geteuid() != 0 or not Path("/dev/fuse").exists():
        return "needs root and FUSE"
    return None


@contextmanager
def slow_mount(folder: Path, bytes_per_second: int, *, keeps_pages: bool = True) -> Iterator[Path]:
    """`folder` again, read-only and slow, under another path; nothing of it is cached at first.

    `keeps_pages`: what has been read stays in memory when the file is opened again, as on NFS;
    without, it does not, as on most FUSE file systems.
    """
    mount_point = Path(tempfile.mkdtemp(prefix="slow-mount-"))
    rate = f"--read-rate={bytes_per_second}"
    mount_options = "ro,auto_cache" if keeps_pages else "ro"
    options = ["--no-allow-other", "-o", mount_options, rate]
    command = ["bindfs", *options, str(folder), str(mount_point)]
    subprocess.run(command, check=True, capture_output=True)
    try:
        yield mount_point
    finally:
        for _ in range(100):  # a process that has just ended may still hold a file
            if subprocess.run(["umount", mount_point], capture_output=True).returncode == 0:
                break
            time.sleep(0.1)
        mount_point.rmdir()
