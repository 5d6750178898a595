"""Patched servers answer as section for section of patches/README.md says; unpatched ones do not.

The servers are the small checkouts beside; `patches/test_upstream.sh` asks the real ones.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator

import pytest

from tests.helpers.upstream_checkout import ERAS, make_checkout
from tgwui_k8s.patching.operations import patch
from tgwui_k8s.patching.questions import QUESTIONS, Question
from tgwui_k8s.patching.site import BROKEN_MODEL, MODEL, Site

CHEAP = ("json_logs", "errors", "stateless")


@pytest.fixture(name="patched", scope="module", params=ERAS)
def _patched(
    tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest
) -> Iterator[Site]:
    root = make_checkout(tmp_path_factory.mktemp("checkouts") / "patched", request.param)
    patch(root)
    site = Site(root, sys.executable)
    yield site
    site.close()


@pytest.fixture(name="unpatched", scope="module")
def _unpatched(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    root = make_checkout(tmp_path_factory.mktemp("checkouts") / "unpatched", "new")
    site = Site(root, sys.executable)
    yield site
    site.close()


@pytest.mark.parametrize("question", QUESTIONS, ids=lambda question: question.text)
def test_a_patched_server_answers(patched: Site, question: Question) -> None:
    """Every question, in both eras."""
    question.ask(patched)


@pytest.mark.parametrize(
    "question",
    [question for question in QUESTIONS if question.ability in CHEAP],
    ids=lambda question: question.text,
)
def test_an_unpatched_server_does_not(unpatched: Site, question: Question) -> None:
    """So that the questions are known to be able to fail."""
    with pytest.raises((AssertionError, OSError)):
        question.ask(unpatched)


def test_a_server_with_a_page_drains_as_well(patched: Site) -> None:
    """There the main thread stays in upstream's loop, and upstream's own handler comes last."""
    with patched.serving("--model", MODEL, page=True) as server:
        server.wait("/health/ready", 200)
        finish = server.begin_stream("slowly")
        server.process.terminate()
        server.wait("/health/ready", 503)
        text = finish()
        code = server.wait_exit()

    assert "word19" in text
    assert "[DONE]" in text or "(cut)" not in text
    assert code == 0
    assert any("stopping" in line for line in server.lines)


def test_a_second_sigterm_ends_at_once(patched: Site) -> None:
    """Whoever is impatient says so twice: exit code 1, and the stream is cut."""
    with patched.serving("--model", MODEL, step_seconds=2.0) as server:
        server.wait("/health/ready", 200)
        finish = server.begin_stream("slowly")
        server.process.terminate()
        server.wait("/health/ready", 503)
        server.process.terminate()
        assert server.wait_exit() == 1
        with pytest.raises((AssertionError, OSError)):
            assert "word19" in finish()


def test_a_load_at_the_start_that_fails_ends_the_server(patched: Site) -> None:
    """Kubernetes sees a pod that crashes, not one that waits for ever; the reason is in the log."""
    with patched.serving("--model", BROKEN_MODEL) as server:
        assert server.wait_exit() == 1

    assert "the model 'broken.gguf' could not be loaded" in "".join(server.lines)
