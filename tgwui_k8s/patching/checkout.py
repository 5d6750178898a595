"""A folder with text-generation-webui: is it one, which version, and is it as git knows it."""

from __future__ import annotations

import fcntl
import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from tgwui_k8s.errors import UsageError
from tgwui_k8s.patching.errors import PatchingError

_LANDMARKS = ("server.py", "modules/shared.py", "modules/text_generation.py")
_GIT_SECONDS = 60


@dataclass(frozen=True)
class Checkout:
    """One folder. Making it checks that it is what it should be."""

    root: Path

    def __post_init__(self) -> None:
        """Raises `UsageError` for a folder of something else."""
        missing = [name for name in _LANDMARKS if not (self.root / name).is_file()]
        if missing:
            raise UsageError(
                f"{self.root} is no checkout of text-generation-webui: {missing[0]} is missing"
            )

    def version(self) -> str:
        """What git calls this commit; by its layout where git does not know."""
        described = self._git("describe", "--tags", "--always", "--match", "*")
        if described:
            return described.strip()
        is_new = (self.root / "modules/api/script.py").is_file()
        return "unknown, 2026 or later" if is_new else "unknown, before 2026-03"

    def dirty_files(self) -> list[str]:
        """Tracked files that are not as in the commit; empty outside of git."""
        listed = self._git("status", "--porcelain", "--untracked-files=no", "-z", "--no-renames")
        return [entry[3:] for entry in (listed or "").split("\0") if entry]

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Nobody else patches this folder meanwhile. Raises `PatchingError` where one does."""
        descriptor = os.open(self.root, os.O_RDONLY)
        try:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise PatchingError(f"another process is patching {self.root}") from None
            yield
        finally:
            os.close(descriptor)

    def _git(self, *arguments: str) -> str | None:
        """Git's answer; None outside of a repository or without git.

        Raises `PatchingError` where there is a repository that git refuses to read.
        """
        if not (self.root / ".git").exists():
            return None
        try:
            done = subprocess.run(
                ["git", "-C", str(self.root), *arguments],  # noqa: S607 - the one on the path
                capture_output=True,
                text=True,
                timeout=_GIT_SECONDS,
                check=False,
            )
        except FileNotFoundError:
            return None
        if done.returncode:
            reason = done.stderr.strip().partition("\n")[0]
            raise PatchingError(f"git does not read {self.root}: {reason}")
        return done.stdout
