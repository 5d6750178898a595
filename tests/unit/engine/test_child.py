"""How an engine process ended, in words."""

from __future__ import annotations

import signal

import pytest

from tgwui_k8s.engine.child import describe_exit


@pytest.mark.parametrize(
    ("returncode", "words"),
    [
        (0, "the engine process exited with code 0"),
        (1, "the engine process exited with code 1"),
        (-signal.SIGKILL, "the engine process was killed (SIGKILL): out of memory?"),
        (-signal.SIGSEGV, "the engine process crashed (SIGSEGV)"),
        (-200, "the engine process crashed (signal 200)"),
    ],
)
def test_exit_is_described_by_code_or_signal(returncode: int, words: str) -> None:
    """The log and the error say what happened, and guess at the most likely cause."""
    assert describe_exit(returncode) == words
