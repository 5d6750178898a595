"""On what kind of file system a path lies, by the kernel's mount table."""

from __future__ import annotations

import re
from pathlib import Path

_NETWORK_TYPES = frozenset(
    {"nfs", "nfs4", "lustre", "cifs", "smb3", "smbfs", "ceph", "glusterfs", "gpfs", "beegfs"}
    | {"9p", "virtiofs", "afs", "ocfs2", "wekafs", "pvfs2", "orangefs", "davfs"}
)
_ESCAPE = re.compile(r"\\([0-7]{3})")


def network_file_system(path: Path, *, mountinfo: str | None = None) -> str | None:
    """The type of the network or FUSE file system that `path` lies on; None on a local disk.

    EFS is "nfs4", S3 through Mountpoint is "fuse". `mountinfo` is /proc/self/mountinfo's text
    (see proc_pid_mountinfo(5)); None reads it. A system without it has no answer: None.
    """
    if mountinfo is None:
        try:
            mountinfo = Path("/proc/self/mountinfo").read_text(encoding="utf-8", errors="replace")
        except OSError:
            return None
    file_system = _file_system_of(path.resolve(), mountinfo)
    base = file_system.partition(".")[0]
    return file_system if base in _NETWORK_TYPES or base.startswith("fuse") else None


def _file_system_of(path: Path, mountinfo: str) -> str:
    """Type of the deepest mount above `path`; of two on one point, the later hides the earlier."""
    deepest = -1
    found = ""
    for line in mountinfo.splitlines():
        fields, _, tail = line.partition(" - ")
        columns = fields.split()
        if len(columns) < 5 or not tail:
            continue
        mount_point = Path(_ESCAPE.sub(lambda match: chr(int(match[1], 8)), columns[4]))
        depth = len(mount_point.parts)
        if depth >= deepest and path.is_relative_to(mount_point):
            deepest, found = depth, tail.split()[0]
    return found
