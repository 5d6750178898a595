"""The folder in which a model comes together, and what is known of it after a crash.

.pull-NAME/
  snapshot.json   which version it is of; another version begins anew
  journal         a line per part that has been written, and per file that has been checked
  tree/           the files, at their full length from the start
"""

from __future__ import annotations

import json
import os
import shutil
import threading
from dataclasses import dataclass, field
from pathlib import Path

from tgwui_k8s.storage.pull.snapshot import RemoteFile, Snapshot

PART_BYTES = 64 << 20
MANIFEST = ".tgwui-pull.json"
"""In the finished folder: where it came from."""


@dataclass(slots=True)
class Progress:
    """What has been written of one file."""

    parts: set[int] = field(default_factory=set)
    is_checked: bool = False


class Workspace:
    """Safe to use from several threads."""

    def __init__(self, folder: Path, snapshot: Snapshot, part_bytes: int) -> None:
        """Go on with what is there, if it is of the same version. Raises `OSError`."""
        self.folder = folder
        self.tree = folder / "tree"
        self._part_bytes = part_bytes
        self._files = {file.path: Progress() for file in snapshot.files}
        self._sizes = {file.path: file.num_bytes for file in snapshot.files}
        self._writing = threading.Lock()
        identity = describe(snapshot) | {"part_bytes": part_bytes}
        if _read_json(folder / "snapshot.json") == identity:
            self._replay()
        else:
            shutil.rmtree(folder, ignore_errors=True)
            self.tree.mkdir(parents=True)
            # What is below this line exists only together with the journal it belongs to.
            (folder / "snapshot.json").write_text(json.dumps(identity))
        self._journal = (folder / "journal").open("ab", buffering=0)
        self._journal.write(b"\n")  # a crash may have left half a line

    def path(self, file: RemoteFile) -> Path:
        """Where the file comes together."""
        return self.tree / file.path

    def missing_parts(self, file: RemoteFile) -> list[tuple[int, int]]:
        """First and last+1 byte of every part that is still to be fetched."""
        have = self._files[file.path].parts
        starts = range(0, file.num_bytes, self._part_bytes)
        return [
            (start, min(start + self._part_bytes, file.num_bytes))
            for part, start in enumerate(starts)
            if part not in have
        ]

    def is_checked(self, file: RemoteFile) -> bool:
        """Whether the file is whole and right."""
        return self._files[file.path].is_checked

    def note_part(self, file: RemoteFile, start: int) -> bool:
        """Remember a part; True when it was the file's last."""
        self._note("part", file, start // self._part_bytes)
        return not self.missing_parts(file)

    def note_checked(self, file: RemoteFile) -> None:
        """Remember that the file is right."""
        self._note("checked", file)

    def forget(self, file: RemoteFile) -> None:
        """Fetch the file again from its beginning."""
        self._note("again", file)

    def close(self) -> None:
        """Write no more."""
        self._journal.close()

    def _note(self, word: str, file: RemoteFile, part: int = 0) -> None:
        line = json.dumps([word, file.path, part]).encode() + b"\n"
        with self._writing:
            self._apply(word, file.path, part)
            self._journal.write(line)

    def _apply(self, word: str, path: str, part: int) -> None:
        if word == "part":
            self._files[path].parts.add(part)
        elif word == "checked":
            self._files[path].is_checked = True
        else:
            self._files[path] = Progress()

    def _replay(self) -> None:
        try:
            lines = (self.folder / "journal").read_bytes().split(b"\n")
        except FileNotFoundError:
            return
        for line in lines:
            try:
                word, path, part = json.loads(line)
            except ValueError:
                continue  # nothing, or the line that a crash has cut off
            if self._has_file(path):
                self._apply(word, path, part)

    def _has_file(self, path: str) -> bool:
        """False for a file of another choice, and for one that somebody has removed."""
        try:
            return (self.tree / path).stat().st_size == self._sizes.get(path)
        except FileNotFoundError:
            return False


def describe(snapshot: Snapshot) -> dict[str, object]:
    """A snapshot as it is written down: by this a version is recognised."""
    return {
        "source": snapshot.source,
        "revision": snapshot.revision,
        "files": {file.path: file.num_bytes for file in snapshot.files},
    }


def read_manifest(folder: Path) -> dict[str, object] | None:
    """Where a finished folder came from; None for one that was made otherwise."""
    return _read_json(folder / MANIFEST)


def sync(path: Path) -> None:
    """Have a file or folder written to its disk. Raises `OSError`."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _read_json(path: Path) -> dict[str, object] | None:
    try:
        content = json.loads(path.read_bytes())
    except (OSError, ValueError):
        return None
    return content if isinstance(content, dict) else None
