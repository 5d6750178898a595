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
from tgwui_k8s.patching.site import Site

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
