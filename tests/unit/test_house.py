"""Rules of the house that no other tool checks."""

from __future__ import annotations

import ast
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from docs import generate
from tgwui_k8s.registry import available

ROOT = Path(__file__).parents[2]
LONGEST_FILE = 500
FORBIDDEN = re.compile(re.escape(f"{ROOT}/") + r"|\.{2}/shared")


def tracked(*patterns: str) -> list[Path]:
    """Files that git knows."""
    listed = subprocess.run(
        ["git", "ls-files", "-z", *patterns], cwd=ROOT, capture_output=True, check=True, text=True
    )
    return [ROOT / name for name in listed.stdout.split("\0") if name and (ROOT / name).is_file()]


def test_no_file_is_too_long() -> None:
    """One idea per file: a Python file of more than 500 lines has several."""
    lengths = {path: len(path.read_text().splitlines()) for path in tracked("*.py")}

    assert lengths
    assert {path: length for path, length in lengths.items() if length > LONGEST_FILE} == {}


def test_every_module_says_what_it_is() -> None:
    """A docstring stands at the top of every module with code."""
    silent = [
        path
        for path in tracked("*.py")
        if (tree := ast.parse(path.read_text())).body and ast.get_docstring(tree) is None
    ]

    assert silent == []


def test_nothing_points_out_of_the_repository() -> None:
    """A clone is whole: no file names a place on the machine it was written on."""
    pointing = []
    for path in tracked():
        if path == Path(__file__):
            continue
        try:
            text = path.read_text(encoding="utf-8")
        except UnicodeDecodeError:
            continue
        if FORBIDDEN.search(text):
            pointing.append(path)

    assert pointing == []


def test_generated_pages_are_up_to_date(capsys: pytest.CaptureFixture[str]) -> None:
    """The reference pages say what the code says; otherwise: make docs."""
    assert generate.main(["--check"]) == 0, capsys.readouterr().err


def test_stale_pages_are_found_and_rewritten(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The check fails on missing and changed pages, and writing them satisfies it."""
    readme = tmp_path / "README.md"
    readme.write_text(f"# Title\n\n{generate.TABLE_BEGINS}\nold\n{generate.TABLE_ENDS}\nEnd.\n")

    assert generate.main(["--check"], tmp_path, readme) == 1
    assert "settings.md" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == [readme]

    assert generate.main([], tmp_path, readme) == 0
    assert generate.main(["--check"], tmp_path, readme) == 0
    assert readme.read_text().startswith("# Title\n")
    assert readme.read_text().endswith("\nEnd.\n")
    assert "| `--port`, `--api-port` | `5000` |" in readme.read_text()
    (tmp_path / "errors.md").write_text("by hand")
    assert generate.main(["--check"], tmp_path, readme) == 1


def test_loaders_extras_and_files_go_together() -> None:
    """Each loader of ours is one file and, where it needs libraries, one extra of its name."""
    ours = [entry for entry in available() if entry.distribution == "tgwui-k8s"]
    modules = {entry.target.split(":")[0] for entry in ours}
    files = {f"loaders.{path.stem}" for path in tracked("loaders/*.py") if path.stem != "__init__"}

    assert modules == files


@pytest.mark.parametrize(
    ("reason", "in_ci", "exit_code"),
    [
        ("I do not feel like it", "true", 1),
        ("I do not feel like it", "", 0),
        ("needs a CUDA device", "true", 0),
    ],
)
def test_unexplained_skip_fails_ci(tmp_path: Path, reason: str, in_ci: str, exit_code: int) -> None:
    """A skip whose reason nobody has accepted turns a green run in CI red, and only there."""
    shutil.copy(ROOT / "tests" / "conftest.py", tmp_path)
    (tmp_path / "test_it.py").write_text(
        "import pytest\n\n"
        f"@pytest.mark.skip(reason={reason!r})\ndef test_skipped(): ...\n\n"
        "def test_passed(): ...\n"
    )
    (tmp_path / "pytest.ini").write_text("[pytest]\n")
    result = subprocess.run(
        [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "-q"],
        cwd=tmp_path,
        env={**os.environ, "CI": in_ci},
        capture_output=True,
        text=True,
    )

    assert result.returncode == exit_code, result.stdout
    assert ("unexplained skip" in result.stdout) is (reason not in "needs a CUDA device")
