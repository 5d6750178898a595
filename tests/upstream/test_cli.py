"""`tgwui-k8s upstream`: what a person sees, and exit codes."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from tests.helpers.upstream_checkout import edit, make_checkout
from tgwui_k8s.cli import main
from tgwui_k8s.patching.verify import verify


def run(*words: str) -> Result:
    return CliRunner().invoke(main, ["upstream", *words])


@pytest.fixture(name="root")
def _root(tmp_path: Path) -> Path:
    return make_checkout(tmp_path / "checkout", "new")


def test_the_way_in_and_out(root: Path) -> None:
    """Each step says what it did."""
    before = run("status", str(root))
    shown = run("patch", str(root), "--only", "metrics", "--diff", "--dry-run")
    patched = run("patch", str(root), "--only", "metrics")
    checked = run("verify", str(root), "--static")
    back = run("unpatch", str(root))

    assert "text-generation-webui snapshot-new" in before.output
    assert "applicable  metrics" in before.output
    assert "+@tgwui_k8s_metrics.queued(shared)" in shown.output
    assert "would change" in shown.output
    assert "metrics 3" in patched.output
    assert "no smoke run: as asked" in checked.output
    assert "files are as they were" in back.output
    assert "nothing to do" in run("unpatch", str(root)).output
    assert {r.exit_code for r in (before, shown, patched, checked, back)} == {0}


def test_what_does_not_fit_is_said_with_an_exit_code(root: Path, tmp_path: Path) -> None:
    """1 for a checkout that cannot be patched, 2 for a wrong word or folder."""
    edit(root / "modules/text_generation.py", "def _generate_reply(", "def _produce(")

    found, refused = run("status", str(root)), run("patch", str(root), "--force")

    assert (found.exit_code, refused.exit_code) == (1, 1)
    assert "conflict    metrics" in found.output
    assert "has no function _generate_reply()" in refused.output
    assert run("patch", str(root), "--only", "colour").exit_code == 2
    assert run("status", str(tmp_path)).exit_code == 2


def test_without_libcst_it_says_how_to_get_it(root: Path) -> None:
    """And every other command works."""
    program = "import sys; sys.modules['libcst'] = None; from tgwui_k8s.cli import main; main()"
    command = [sys.executable, "-c", program, "upstream", "status", str(root)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)

    assert done.returncode == 1
    assert "pip install 'tgwui-k8s[upstream]'" in " ".join(done.stderr.split())


def test_verify_finds_what_is_broken(root: Path, tmp_path: Path) -> None:
    """An edit since, a hook that is gone; without upstream's requirements there is no smoke run."""
    run("patch", str(root))
    bare = tmp_path / "python"
    bare.write_text(f'#!/bin/sh\nexec {sys.executable} -S -I "$@"\n')
    bare.chmod(0o755)

    assert "has no tgwui-k8s" in verify(root, str(bare)).skipped
    edit(root / "modules/shared.py", "tgwui_k8s_logs.mask", "tgwui_k8s_logs.masc")
    verdict = verify(root, sys.executable)

    assert any("modules/shared.py changed after patching" in p for p in verdict.problems)
    assert any("hook logs.masc" in problem for problem in verdict.problems)
    assert verdict.outcomes == ()
