"""The page over an API whose answers are known: reasoning, and what it says when it refuses."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from playwright.sync_api import expect

from tests.browser.conftest import Open, ask
from tests.helpers.api_server import ApiServer, encode, serving
from tests.helpers.fake_backend import FakeBackend, fake_info
from tests.helpers.page_process import page_over
from tgwui_k8s.demo.tiny_tokenizer import CHAT_TEMPLATE
from tgwui_k8s.errors import DrainingError, OverloadedError, RequestError

ANSWER = "<think>flour and sugar first</think>**Mix** the flour with the sugar."
EOS = 1


@pytest.fixture(name="api", scope="module")
def _api() -> Iterator[ApiServer]:
    backend = FakeBackend(
        lambda request, index: [*encode(ANSWER), EOS], info=fake_info(max_model_len=4096)
    )
    with serving(backend, template=f"{CHAT_TEMPLATE}{{# <think> </think> #}}") as server:
        yield server


@pytest.fixture(name="url", scope="module")
def _url(api: ApiServer) -> Iterator[str]:
    with page_over(api.url) as url:
        yield url


def test_reasoning_is_folded(url: str, open_page: Open) -> None:
    """Apart from the answer, closed when it is over, and open on a click."""
    page = open_page(url)
    ask(page, "How?")
    row = page.locator("#tgwui-chat .bot-row")
    expect(row.locator("strong")).to_have_text("Mix")
    thought = row.get_by_text("flour and sugar first")
    expect(thought).to_be_hidden()
    row.get_by_text("Reasoning").click()
    expect(thought).to_be_visible()


@pytest.mark.parametrize(
    ("refusal", "words"),
    [
        (OverloadedError("The queue is full."), "The queue is full: more people are asking"),
        (DrainingError("The server is shutting down."), "This pod is shutting down"),
    ],
)
def test_refusals_in_words(
    api: ApiServer, url: str, open_page: Open, refusal: RequestError, words: str
) -> None:
    """What happened, what to do, and a button that does it."""
    page = open_page(url)
    page.watch.expects_failures = True  # type: ignore[attr-defined]
    api.backend.refusal = refusal
    ask(page, "How?")
    notice = page.get_by_role("alert")
    expect(notice).to_contain_text(words)
    api.backend.refusal = None
    notice.get_by_role("button", name="Try again").click()
    expect(page.locator("#tgwui-chat .bot-row strong")).to_have_text("Mix")
    expect(notice).to_be_empty()


def test_a_fault_in_mid_answer_keeps_the_text(api: ApiServer, url: str, open_page: Open) -> None:
    """Even in the middle of the reasoning, Continue goes on from the very token."""
    page = open_page(url)
    page.watch.expects_failures = True  # type: ignore[attr-defined]
    api.backend.fault, api.backend.fault_step = RuntimeError("it broke"), 8
    ask(page, "How?")
    expect(page.locator(".bot-row .tgwui-foot")).to_contain_text("interrupted")
    api.backend.fault = None
    page.click("#tgwui-continue")
    expect(page.locator("#tgwui-chat .bot-row strong")).to_have_text("Mix")
    assert len(api.backend.requests[-1].resume_token_ids[0]) == 8
