"""Collecting orphans, as process 1 must."""

from __future__ import annotations

import subprocess
import sys

import pytest

SCRIPT = """
import ctypes, os, time
from tgwui_k8s.orphans import collect_dead

PR_SET_CHILD_SUBREAPER = 36
ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, 1)

own = os.fork()
if own == 0:
    os._exit(7)
os.waitid(os.P_PID, own, os.WEXITED | os.WNOWAIT)

parent = os.fork()
if parent == 0:
    os.fork()
    os._exit(0)
os.waitpid(parent, 0)

if {spared}:
    assert collect_dead({{own}}) == []
    assert os.waitpid(own, 0) == (own, 7 << 8)
collected = []
while len(collected) < {expected}:
    collected += collect_dead(())
    time.sleep(0.01)
assert parent not in collected
assert collect_dead(()) == []
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="needs Linux")
@pytest.mark.parametrize(("spared", "expected"), [(True, 1), (False, 2)])
def test_orphans_are_collected_and_the_own_child_is_left(spared: bool, expected: int) -> None:
    """A grandchild without parent is collected; the engine process keeps its exit status."""
    script = SCRIPT.format(spared=spared, expected=expected)
    result = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, timeout=30, check=False
    )

    assert (result.returncode, result.stderr) == (0, b"")


def test_nothing_to_collect_is_fine() -> None:
    """A process without children gets an empty list."""
    script = "from tgwui_k8s.orphans import collect_dead; assert collect_dead(()) == []"

    assert subprocess.run([sys.executable, "-c", script], timeout=30, check=False).returncode == 0
