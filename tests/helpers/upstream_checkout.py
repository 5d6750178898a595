"""Checkouts with the seams of text-generation-webui, in two eras; see tests/upstream/checkouts."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

ERAS = ("old", "new")
_SOURCES = Path(__file__).parents[1] / "upstream" / "checkouts"


def make_checkout(folder: Path, era: str) -> Path:
    """A git repository of that era with everything committed."""
    for part in ("both", era):
        shutil.copytree(
            _SOURCES / part,
            folder,
            dirs_exist_ok=True,
            ignore=shutil.ignore_patterns("__pycache__"),
        )
    git(folder, "init", "-q")
    git(folder, "add", "-A", "-f")
    who = ("-c", "user.name=test", "-c", "user.email=test@example.com")
    git(folder, *who, "commit", "-q", "-m", era)
    git(folder, "tag", f"snapshot-{era}")
    return folder


def git(folder: Path, *arguments: str) -> str:
    """What git answers."""
    command = ["git", "-C", str(folder), *arguments]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


def contents(folder: Path) -> dict[str, bytes]:
    """Every file but git's, by path."""
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and ".git" not in path.parts
    }


def edit(path: Path, old: str, new: str) -> None:
    """Replace text that is there."""
    text = path.read_text()
    assert old in text, f"{old!r} is not in {path}"
    path.write_text(text.replace(old, new))
