"""`pull`: a model from a source to the model directory, all of it or nothing."""

from __future__ import annotations

import errno
import json
import logging
import os
import shutil
from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path

from tgwui_k8s.byte_size import format_byte_size
from tgwui_k8s.errors import DownloadError, UsageError
from tgwui_k8s.storage.pull.download import Download
from tgwui_k8s.storage.pull.lock import exclusive
from tgwui_k8s.storage.pull.selection import select
from tgwui_k8s.storage.pull.snapshot import Snapshot, Source
from tgwui_k8s.storage.pull.workspace import (
    MANIFEST,
    PART_BYTES,
    Workspace,
    describe,
    read_manifest,
    sync,
)

NUM_CONNECTIONS = 16

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class PullRequest:
    """What is wanted."""

    model_dir: Path
    name: str | None = None
    """The folder; None: the source's default."""
    include: Sequence[str] = ()
    exclude: Sequence[str] = ()
    num_connections: int = NUM_CONNECTIONS
    part_bytes: int = PART_BYTES


@dataclass(frozen=True, slots=True)
class Pulled:
    """What there is now."""

    folder: Path
    num_bytes: int
    was_there: bool
    """True where an earlier run, or another process, had done it."""


def pull(source: Source, request: PullRequest, on_progress: Callable[[int, int], None]) -> Pulled:
    """Fetch the model, unless it is there already.

    `on_progress(num_bytes, num_bytes_in_all)` is called about once a second. Raises `UsageError`
    for a name that cannot be, and `DownloadError` for everything else: the source, the network, the
    disk, a folder of this name that holds something else. What has been fetched by then stays, and
    the next run goes on from there.
    """
    name = request.name or source.default_name
    if Path(name).name != name or name.startswith("."):
        raise UsageError(f"'{name[:100]}' cannot be a model's folder: use --name")
    snapshot = source.snapshot()
    snapshot = replace(snapshot, files=select(snapshot.files, request.include, request.exclude))
    folder = request.model_dir / name
    try:
        request.model_dir.mkdir(parents=True, exist_ok=True)
        with exclusive(request.model_dir / f".pull-{name}.lock") as lock:
            if _is_there(folder, snapshot):
                return Pulled(folder, snapshot.num_bytes, was_there=True)
            unfinished = request.model_dir / f".pull-{name}"
            with closing(Workspace(unfinished, snapshot, request.part_bytes)) as workspace:
                _check_room(workspace, snapshot)
                logger.info("fetching %s into %s", snapshot.source, folder)
                Download(source, workspace, snapshot.files).run(
                    request.num_connections, lambda done: on_progress(done, snapshot.num_bytes)
                )
            lock.check()
            _publish(workspace, snapshot, folder)
    except OSError as error:
        raise DownloadError(_disk_reason(error, request.model_dir)) from error
    return Pulled(folder, snapshot.num_bytes, was_there=False)


def _is_there(folder: Path, snapshot: Snapshot) -> bool:
    """Whether the folder is this very version. Raises `DownloadError` where it is another."""
    if not folder.exists():
        return False
    manifest = read_manifest(folder)
    if manifest != describe(snapshot):
        kept = (
            "was not made by this command" if manifest is None else "is another version or choice"
        )
        raise DownloadError(
            f"{folder} exists and {kept}: choose another --name, or remove it first. Nothing has "
            "been changed"
        )
    for file in snapshot.files:
        path = folder / file.path
        if not path.is_file() or path.stat().st_size != file.num_bytes:
            raise DownloadError(f"{path} is missing or cut off: remove {folder} and run again")
    return True


def _check_room(workspace: Workspace, snapshot: Snapshot) -> None:
    """Raise `DownloadError` before a disk is filled in vain."""
    missing = sum(
        end - start for file in snapshot.files for start, end in workspace.missing_parts(file)
    )
    disk = os.statvfs(workspace.folder)
    free = disk.f_bavail * disk.f_frsize
    if missing > free:
        raise DownloadError(
            f"{format_byte_size(missing)} are to be fetched, and the disk has room for "
            f"{format_byte_size(free)}"
        )


def _publish(workspace: Workspace, snapshot: Snapshot, folder: Path) -> None:
    """Let the model appear, whole, in one step."""
    manifest = workspace.tree / MANIFEST
    manifest.write_text(json.dumps(describe(snapshot), indent=1))
    sync(manifest)
    sync(workspace.tree)
    try:
        workspace.tree.rename(folder)
    except OSError as error:
        if error.errno in (errno.ENOTEMPTY, errno.EEXIST, errno.ENOTDIR):
            raise DownloadError(f"{folder} has appeared meanwhile: it is left as it is") from None
        raise
    sync(folder.parent)
    shutil.rmtree(workspace.folder, ignore_errors=True)


def _disk_reason(error: OSError, model_dir: Path) -> str:
    reasons = {
        errno.ENOSPC: "is full; free some room and run again: what has been fetched is kept",
        errno.EDQUOT: "has no quota left; what has been fetched is kept",
        errno.EROFS: "is read-only: mount it writable for this command",
        errno.EACCES: "may not be written by this user",
        errno.EPERM: "may not be written by this user",
    }
    reason = reasons.get(error.errno or 0, f"cannot be written: {error.strerror}")
    return f"{model_dir} {reason}"
