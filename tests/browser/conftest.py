"""A real browser for `make browser-test`, and pages that report whatever went wrong in them."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from typing import Any
from urllib.parse import urlsplit

import pytest

if "TEST_BROWSER" not in os.environ:
    collect_ignore_glob = ["test_*.py"]
else:
    from playwright.sync_api import Browser, BrowserContext, Page, expect, sync_playwright

FLAGS = (
    *("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"),
    *("--disable-background-networking", "--disable-component-update", "--disable-sync"),
)
PATIENCE_MS = 120_000
"""Nothing here measures time, and the machine may be busy with other tests."""

DESKTOP = {"width": 1200, "height": 800}
PHONE = {"width": 390, "height": 844}

Open = Callable[..., "Page"]


class Watch:
    """What a page must not do: write errors to its console, or ask other hosts."""

    def __init__(self, page: Page) -> None:
        self.problems: list[str] = []
        self.expects_failures = False
        """True in tests where requests fail: browsers write that to the console."""
        page.on("console", lambda message: self._console(message.type, message.text))
        page.on("pageerror", lambda error: self.problems.append(f"error: {error}"))
        page.on("request", lambda request: self._request(request.url))

    def _console(self, kind: str, text: str) -> None:
        is_failure = text.startswith("Failed to load resource")
        if kind == "error" and not (is_failure and self.expects_failures):
            self.problems.append(f"console: {text}")

    def _request(self, url: str) -> None:
        parts = urlsplit(url)
        if parts.scheme in ("http", "https", "ws", "wss") and parts.hostname != "127.0.0.1":
            self.problems.append(f"asked another host: {url}")


@pytest.fixture(name="browser", scope="session")
def _browser() -> Iterator[Browser]:
    expect.set_options(timeout=PATIENCE_MS)
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=os.environ["TEST_BROWSER"], args=list(FLAGS)
        )
        yield browser
        browser.close()


@pytest.fixture(name="profile", scope="session")
def _profile(browser: Browser) -> BrowserContext:
    """A profile that tests use in turns: what has been loaded once comes from its cache."""
    return _new_profile(browser)


@pytest.fixture(name="open_page")
def _open_page(browser: Browser, profile: BrowserContext) -> Iterator[Open]:
    """Opens a page in a profile that has kept nothing, and waits until it can be used.

    A second page of a test, and one with options, gets a profile of its own. At the end all of
    them must have been well.
    """
    watches: list[Watch] = []
    others: list[BrowserContext] = []

    def open_page(url: str, *, wait: bool = True, **options: Any) -> Page:
        if options or watches:
            others.append(_new_profile(browser, **options))
        context = others[-1] if others else profile
        page = watched(context.new_page())
        watches.append(page.watch)  # type: ignore[attr-defined]
        _forget(page, url)
        goto(page, url, wait=wait)
        return page

    yield open_page
    for page in profile.pages:
        page.close()
    for context in others:
        context.close()
    assert [problem for watch in watches for problem in watch.problems] == []


def _new_profile(browser: Browser, **options: Any) -> BrowserContext:
    context = browser.new_context(**{"viewport": DESKTOP, **options})
    context.set_default_timeout(PATIENCE_MS)
    return context


def _forget(page: Page, url: str) -> None:
    """Empty the profile of what the page at `url` has kept, but for the cache."""
    parts = urlsplit(url)
    where = {"origin": f"{parts.scheme}://{parts.netloc}", "storageTypes": "local_storage"}
    page.context.new_cdp_session(page).send("Storage.clearDataForOrigin", where)
    page.context.clear_cookies()


def watched(page: Page) -> Page:
    """The page with a `Watch` on it."""
    page.watch = Watch(page)  # type: ignore[attr-defined]
    return page


def goto(page: Page, url: str, *, wait: bool = True) -> None:
    """Go there; once more where the machine's network changed, which aborts all requests."""
    watch: Watch = page.watch  # type: ignore[attr-defined]
    for attempt in range(3):
        before = len(watch.problems)
        page.goto(url)
        if not wait:
            return
        try:
            page.wait_for_selector("body[data-ready] #tgwui-message textarea")
        except Exception:
            has_changed = any("ERR_NETWORK_CHANGED" in problem for problem in watch.problems)
            if not has_changed or attempt == 2:
                raise
            del watch.problems[before:]
        else:
            return


def ask(page: Page, text: str, *, wait: bool = True) -> None:
    """Send a message, and wait for the end of the answer."""
    page.fill("#tgwui-message textarea", text)
    with generating(page):
        page.press("#tgwui-message textarea", "Enter")
    if wait:
        answered(page)


def generating(page: Page) -> Any:
    """Around what makes the page ask the API: ends when the answer has begun."""
    return page.expect_response(lambda response: response.url.endswith("/completions"))


def answered(page: Page) -> None:
    """Wait until nothing is generated any more."""
    page.wait_for_selector("body:not([data-chat=running])")
    page.wait_for_timeout(150)  # the last painting


def last_answer(page: Page) -> str:
    """The text of the last message of the model, without what stands below it."""
    return page.locator("#tgwui-chat .bot-row .message-content").last.inner_text().strip()


def open_tab(page: Page, place: int) -> None:
    """Open a tab by its place; all are in sight, on a phone too."""
    tabs = page.locator("#tgwui-tabs [role=tab]:visible")
    tabs.nth(place).click()
