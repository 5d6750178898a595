"""What a source has: a fixed version of some files, and where their bytes are."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import PurePosixPath
from typing import Literal, Protocol

from tgwui_k8s.errors import DownloadError

Algorithm = Literal["sha256", "git-sha1", "md5", "s3-parts"]


@dataclass(frozen=True, slots=True)
class Checksum:
    """What the bytes of a file must hash to.

    `git-sha1` is a git blob's name; `s3-parts` the ETag of an object uploaded in parts of
    `part_bytes`: the MD5 of the parts' MD5s, and their number.
    """

    algorithm: Algorithm
    value: str
    part_bytes: int = 0


@dataclass(frozen=True, slots=True)
class RemoteFile:
    """One file of a snapshot."""

    path: str
    """Relative, with slashes."""
    num_bytes: int
    checksum: Checksum | None = None
    etag: str | None = None
    """What every answer with its bytes must carry, where the version is fixed by nothing else."""

    def __post_init__(self) -> None:
        """Refuse a path that leads out of the model's folder."""
        parts = PurePosixPath(self.path).parts
        if not parts or self.path.startswith("/") or ".." in parts or "\0" in self.path:
            raise DownloadError(f"the source names a file '{self.path[:100]}': it leads elsewhere")


@dataclass(frozen=True, slots=True)
class Snapshot:
    """A version that stays what it is."""

    source: str
    """Without secrets."""
    revision: str
    files: tuple[RemoteFile, ...]

    @property
    def num_bytes(self) -> int:
        """Of all files."""
        return sum(file.num_bytes for file in self.files)


@dataclass(frozen=True, slots=True)
class Location:
    """Where a file's bytes can be had for the next minutes."""

    url: str
    headers: Mapping[str, str] = field(default_factory=dict)
    """Sent to the URL's own host only, not to where it redirects."""


class Source(Protocol):
    """Where models come from."""

    @property
    def default_name(self) -> str:
        """The folder's name, unless another is asked for."""
        ...

    def snapshot(self) -> Snapshot:
        """What there is now. Raises `DownloadError`."""
        ...

    def locate(self, file: RemoteFile) -> Location:
        """Where to get a file of the snapshot; asked anew for every request."""
        ...
