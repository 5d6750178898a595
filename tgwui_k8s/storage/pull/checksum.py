"""Whether a file's bytes are those that its source has."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from pathlib import Path

from tgwui_k8s.storage.pull.snapshot import Checksum

_PIECE_BYTES = 4 << 20


def matches(path: Path, checksum: Checksum) -> bool:
    """Read the file once and compare."""
    return _digest(path, checksum) == checksum.value


def _digest(path: Path, checksum: Checksum) -> str:
    if checksum.algorithm == "s3-parts":
        return _parts_digest(path, checksum.part_bytes)
    if checksum.algorithm == "sha256":
        hasher = hashlib.sha256()
    elif checksum.algorithm == "md5":
        hasher = hashlib.md5(usedforsecurity=False)
    else:
        hasher = hashlib.sha1(usedforsecurity=False)
        hasher.update(b"blob %d\0" % path.stat().st_size)
    for piece in _pieces(path, _PIECE_BYTES):
        hasher.update(piece)
    return hasher.hexdigest()


def _parts_digest(path: Path, part_bytes: int) -> str:
    """S3's ETag of an object that was uploaded in parts."""
    digests = [
        hashlib.md5(piece, usedforsecurity=False).digest() for piece in _pieces(path, part_bytes)
    ]
    whole = hashlib.md5(b"".join(digests), usedforsecurity=False).hexdigest()
    return f"{whole}-{len(digests)}"


def _pieces(path: Path, num_bytes: int) -> Iterator[bytes]:
    with path.open("rb") as file:
        while piece := file.read(num_bytes):
            yield piece
