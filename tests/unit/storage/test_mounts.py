"""Network and FUSE file systems are recognised by the mount table."""

from __future__ import annotations

from pathlib import Path

import pytest

from tgwui_k8s.storage.mounts import network_file_system

MOUNTINFO = """\
21 1 259:1 / / rw,relatime shared:1 - ext4 /dev/root rw
30 21 0:25 / /proc rw - proc proc rw
40 21 0:50 / /mnt/efs rw,relatime shared:20 - nfs4 127.0.0.1:/ rw,vers=4.1
41 40 0:51 / /mnt/efs/scratch rw - tmpfs tmpfs rw
42 21 0:52 / /mnt/with\\040space rw - fuse.mountpoint-s3 mountpoint-s3 rw
43 21 0:53 / /mnt/fsx rw - lustre 10.0.0.1@tcp:/fsx rw
44 21 0:54 / /mnt/twice rw - nfs4 server:/ rw
45 44 0:55 / /mnt/twice rw - xfs /dev/sdb rw
garbage
"""


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        ("/mnt/efs/models/llama", "nfs4"),
        ("/mnt/efs", "nfs4"),
        ("/mnt/efs/scratch/model", None),
        ("/mnt/with space/model", "fuse.mountpoint-s3"),
        ("/mnt/fsx/model", "lustre"),
        ("/mnt/efsx/model", None),
        ("/mnt/twice/model", None),
        ("/home/app/model", None),
    ],
)
def test_the_deepest_and_latest_mount_decides(path: str, expected: str | None) -> None:
    """Prefixes count by whole components; a mount over a mount hides it."""
    assert network_file_system(Path(path), mountinfo=MOUNTINFO) == expected


def test_reads_the_kernels_table_by_default() -> None:
    """/proc is neither network nor FUSE, on any machine."""
    assert network_file_system(Path("/proc/self")) is None
