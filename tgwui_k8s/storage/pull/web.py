"""One file from a web server: `https://host/model.gguf#sha256=...`."""

from __future__ import annotations

import hashlib
import re
from pathlib import PurePosixPath
from urllib.parse import unquote, urlsplit, urlunsplit

from tgwui_k8s.errors import DownloadError, UsageError
from tgwui_k8s.storage.pull.ranges import ask_size
from tgwui_k8s.storage.pull.snapshot import Checksum, Location, RemoteFile, Snapshot

_FRAGMENT = re.compile(r"sha256=([0-9a-fA-F]{64})")


class WebSource:
    """A file that becomes the only one of its model's folder."""

    def __init__(self, url: str) -> None:
        """Raises `UsageError` for a URL without a file's name, or with another fragment."""
        parts = urlsplit(url)
        self._file_name = PurePosixPath(unquote(parts.path)).name
        if not self._file_name:
            raise UsageError(f"{url} names no file")
        matched = _FRAGMENT.fullmatch(parts.fragment)
        if parts.fragment and matched is None:
            raise UsageError("after '#' only 'sha256=' and 64 hexadecimal digits can stand")
        self._checksum = Checksum("sha256", matched[1].lower()) if matched else None
        self._location = Location(urlunsplit(parts._replace(fragment="")))
        # Neither a password nor a signature is for the log.
        host = parts.netloc.rpartition("@")[2]
        self._shown = urlunsplit((parts.scheme, host, parts.path, "", ""))

    @property
    def default_name(self) -> str:
        """The file's name without its extension."""
        return PurePosixPath(self._file_name).stem

    def snapshot(self) -> Snapshot:
        """The file as it is now; its ETag, where it has one, holds the version."""
        size, etag = ask_size(self._location)
        if size is None:
            raise DownloadError(f"{self._shown} has no Content-Length")
        version = f"{size} {etag} {self._checksum}"
        revision = hashlib.sha256(version.encode()).hexdigest()
        file = RemoteFile(self._file_name, size, self._checksum, etag)
        return Snapshot(self._shown, revision, (file,))

    def locate(self, file: RemoteFile) -> Location:
        """The URL itself."""
        return self._location
