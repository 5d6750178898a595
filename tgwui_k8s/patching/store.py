"""The record in DIR/.tgwui_k8s: what the files were, what they became; and the switch, in one go.

A switch first writes everything beside, then a journal, then renames file by file. Whatever stops
it half-way, the next command finds the journal and takes all of it back.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from tgwui_k8s.patching.errors import PatchingError

FOLDER = ".tgwui_k8s"
_RECORD = "record.json"
_ORIGINALS = "originals"
_STAGING = "staging"
_FORMAT = 1


@dataclass(frozen=True)
class Record:
    """What was done to a checkout."""

    abilities: tuple[str, ...]
    files: Mapping[str, str]
    """Hash of the patched content, by path."""
    is_whole: bool = True
    """False while a switch is under way."""


class Store:
    """The record of one checkout, and its only writer."""

    def __init__(self, root: Path) -> None:
        self._root = root
        self._folder = root / FOLDER

    def record(self) -> Record | None:
        """What was done; None where nothing was. Raises `PatchingError` where it is unreadable."""
        try:
            content = json.loads((self._folder / _RECORD).read_text(encoding="utf-8"))
            if content["format"] != _FORMAT:
                raise PatchingError(f"{self._folder} is of another version of tgwui-k8s")
            return Record(tuple(content["abilities"]), content["files"], content["is_whole"])
        except FileNotFoundError:
            return None
        except (ValueError, KeyError, TypeError) as error:
            raise PatchingError(f"{self._folder / _RECORD} is damaged: {error}") from None

    def original(self, path: str) -> bytes | None:
        """A file as it was before; None where this store knows nothing of it."""
        try:
            return (self._folder / _ORIGINALS / path).read_bytes()
        except FileNotFoundError:
            return None

    def edited_since(self) -> list[str]:
        """Patched files that are no longer as we left them."""
        record = self.record()
        files = record.files if record is not None else {}
        return [path for path, digest in files.items() if self._digest(path) != digest]

    def recover(self) -> bool:
        """Take back a switch that did not come to its end. True where there was one."""
        record = self.record()
        if record is None or record.is_whole:
            return False
        self.restore()
        return True

    def switch(self, abilities: tuple[str, ...], contents: Mapping[str, bytes]) -> None:
        """Make these contents what the files hold; the rest is as it was before any patch.

        All or nothing: where one file cannot be written, every file is as before all patches.
        """
        before = self.record()
        back = set(before.files if before is not None else ()) - set(contents)
        for path in contents:
            if self.original(path) is None:
                self._write(self._folder / _ORIGINALS / path, (self._root / path).read_bytes())
        for path, content in contents.items():
            self._stage(path, content)
        for path in back:
            self._stage(path, self._known_original(path))
        digests = {path: _digest(content) for path, content in contents.items()}
        touched = {**dict.fromkeys(back, ""), **digests}
        self._save(Record(abilities, touched, is_whole=False))
        try:
            for path in touched:
                (self._folder / _STAGING / path).replace(self._root / path)
        except OSError as error:
            self.restore()
            raise PatchingError(
                f"cannot write {path}: {error.strerror}; everything is as before all patches"
            ) from error
        shutil.rmtree(self._folder / _STAGING)
        for path in back:
            (self._folder / _ORIGINALS / path).unlink()
        self._save(Record(abilities, digests))

    def restore(self) -> list[str]:
        """Put every original back, byte by byte, and forget. Returns their paths."""
        record = self.record()
        paths = list(record.files) if record is not None else []
        for path in paths:
            if (self._root / path).read_bytes() != self._known_original(path):
                self._stage(path, self._known_original(path))
                (self._folder / _STAGING / path).replace(self._root / path)
        shutil.rmtree(self._folder)
        return paths

    # ------------------------------------------------------------------------------------ files

    def _known_original(self, path: str) -> bytes:
        original = self.original(path)
        if original is None:
            raise PatchingError(
                f"{self._folder} has lost the original of {path}: restore it with "
                f"'git checkout -- {path}' and delete {self._folder}"
            )
        return original

    def _stage(self, path: str, content: bytes) -> None:
        staged = self._folder / _STAGING / path
        self._write(staged, content)
        shutil.copymode(self._root / path, staged)

    def _save(self, record: Record) -> None:
        content = {
            "format": _FORMAT,
            "abilities": record.abilities,
            "files": dict(record.files),
            "is_whole": record.is_whole,
        }
        fresh = self._folder / f"{_RECORD}.new"
        self._write(fresh, json.dumps(content, indent=2).encode() + b"\n")
        fresh.replace(self._folder / _RECORD)

    def _write(self, path: Path, content: bytes) -> None:
        """Through to the disk. The folder keeps itself out of `git status`."""
        path.parent.mkdir(parents=True, exist_ok=True)
        ignore = self._folder / ".gitignore"
        if not ignore.exists():
            ignore.write_text("*\n")
        with path.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())

    def _digest(self, path: str) -> str | None:
        try:
            return _digest((self._root / path).read_bytes())
        except FileNotFoundError:
            return None


def _digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()
