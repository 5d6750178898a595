"""Reading ahead beside a loader: who tells what, and how it ends."""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tgwui_k8s.contract import LoadProgress, LoadRequest
from tgwui_k8s.errors import BrokenModelError
from tgwui_k8s.runtime import prefetching as module
from tgwui_k8s.runtime.prefetching import reading_ahead
from tgwui_k8s.storage.weights import WeightFiles

HALF, WHOLE = LoadProgress("loading", 50, 100), LoadProgress("loading", 100, 100)


class ScriptedReading:
    """In place of `prefetch`: says how far it is when it is told to."""

    def __init__(self) -> None:
        self.go_on = threading.Event()
        self.has_begun = threading.Event()
        self.error: Exception | None = None

    def __call__(
        self, weights: WeightFiles, *, on_bytes: Callable[[int], None], stop: Any, **_: Any
    ) -> int:
        on_bytes(30)
        self.has_begun.set()
        while not (self.go_on.is_set() or stop.is_set()):
            self.go_on.wait(0.01)
        if self.error is not None:
            raise self.error
        return 30


@pytest.fixture
def reading(monkeypatch: pytest.MonkeyPatch) -> ScriptedReading:
    scripted = ScriptedReading()
    monkeypatch.setattr(module, "prefetch", scripted)
    return scripted


def read_beside(seen: list[LoadProgress], prefetch: Any = "on") -> Any:
    """The context, for a hundred bytes of weights."""
    request = LoadRequest(model_path="nowhere", loader="fake", prefetch=prefetch)
    return reading_ahead(request, WeightFiles("bin", (Path("w"),), {}, 100), seen.append)


def test_the_one_who_is_ahead_is_told_of(reading: ScriptedReading) -> None:
    """While weights are read, the loader's own count waits; afterwards the newest one is told."""
    seen: list[LoadProgress] = []
    with read_beside(seen) as note:
        reading.has_begun.wait()
        note(HALF)
        assert [progress.phase for progress in seen] == ["prefetching"]
        reading.go_on.set()
        while len(seen) < 2:
            pass
        note(WHOLE)
    assert seen == [LoadProgress("prefetching", 30, 100), HALF, WHOLE]


def test_a_loader_that_is_done_waits_for_nothing(reading: ScriptedReading) -> None:
    """Reading ends with the context, and the last thing told is that all is loaded."""
    seen: list[LoadProgress] = []
    with read_beside(seen) as note:
        reading.has_begun.wait()
        note(WHOLE)
    assert seen[-1] == WHOLE


def test_a_file_that_cannot_be_read_ends_the_loading(reading: ScriptedReading) -> None:
    """The reader meets it first; the loader hears of it at its next step, or at the end."""
    reading.error = BrokenModelError("stale")
    with pytest.raises(BrokenModelError, match="stale"), read_beside([]):
        reading.go_on.set()


def test_an_error_of_the_loader_counts_first(reading: ScriptedReading) -> None:
    """What the other thread says then is of no interest."""
    reading.error = BrokenModelError("stale")
    with pytest.raises(KeyError), read_beside([]):
        raise KeyError


def test_nothing_is_read_that_was_not_asked_for(reading: ScriptedReading) -> None:
    """Switched off, or on a local disk: the loader's progress is all there is."""
    for how in ("off", "auto"):
        seen: list[LoadProgress] = []
        with read_beside(seen, how) as note:
            note(WHOLE)
        assert seen == [WHOLE]
    assert not reading.has_begun.is_set()
