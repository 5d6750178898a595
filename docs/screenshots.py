"""Take the pictures in `docs/images/` of the web page, from the server with the demo model.

    python -m docs.screenshots            needs /usr/bin/chromium, or TEST_BROWSER

Small on purpose: a palette of 64 colours, below 80 kB each.
"""

from __future__ import annotations

import io
import os
from collections.abc import Callable
from itertools import product
from pathlib import Path

from PIL import Image
from playwright.sync_api import Browser, Page, sync_playwright

os.environ.setdefault("TEST_BROWSER", "/usr/bin/chromium")

from tests.browser.conftest import DESKTOP, FLAGS, PATIENCE_MS, PHONE, ask, goto, open_tab, watched
from tests.helpers.page_process import PageServer

IMAGES = Path(__file__).parent / "images"
NUM_COLOURS = 64
QUESTIONS = ("How do models get on EFS?", "What is the weather in Rome?")
PARAMETERS_KEPT = '{"temperature": 0.6}'
"""A model this small talks nonsense above."""

CHAT, NOTEBOOK, PARAMETERS, MODEL, ENGINE = range(5)


def chat(page: Page) -> None:
    """Two questions, the second answered twice."""
    for question in QUESTIONS:
        ask(page, question)
    page.click("#tgwui-regenerate")
    page.wait_for_timeout(300)
    page.wait_for_selector("body:not([data-chat=running])")
    page.wait_for_timeout(500)


def notebook(page: Page) -> None:
    """A recipe, one token looked at."""
    open_tab(page, NOTEBOOK)
    page.click("#tgwui-notebook-generate")
    page.wait_for_selector("body[data-notebook=running]")
    page.wait_for_selector("body:not([data-notebook=running])")
    page.wait_for_timeout(300)
    page.locator("#tgwui-tokens").scroll_into_view_if_needed()
    page.locator(".tgwui-token:not(.tgwui-level-4)").first.click()
    page.wait_for_timeout(200)
    page.evaluate("window.scrollTo(0, document.body.scrollHeight)")


def parameters(page: Page) -> None:
    """The samplers."""
    open_tab(page, PARAMETERS)
    page.wait_for_timeout(500)


def model(page: Page) -> None:
    """As the admin sees it."""
    open_tab(page, MODEL)
    page.wait_for_selector(".tgwui-models td")


WRONG_REQUEST = """() => fetch("/page/api/v1/completions", {
    method: "POST",
    headers: {"content-type": "application/json", "x-tgwui-page": "1"},
    body: JSON.stringify({prompt: "Hello", temperature: 3}),
})"""


def engine(page: Page) -> None:
    """While somebody asks, once for what there is not."""
    ask(page, QUESTIONS[0])
    page.evaluate(WRONG_REQUEST)
    open_tab(page, ENGINE)
    page.wait_for_timeout(2500)
    for _ in range(3):
        open_tab(page, CHAT)
        ask(page, QUESTIONS[0])
        open_tab(page, ENGINE)
        page.wait_for_timeout(2500)


TABS = (chat, notebook, parameters, model, engine)
LOOKS = {
    "light": (DESKTOP, "light"),
    "dark": (DESKTOP, "dark"),
    "phone": (PHONE, "light"),
}


def take(browser: Browser, url: str, act: Callable[[Page], None], look: str) -> None:
    """One picture, in a fresh profile."""
    viewport, scheme = LOOKS[look]
    context = browser.new_context(viewport=viewport, color_scheme=scheme)  # type: ignore[arg-type]
    context.set_default_timeout(PATIENCE_MS)
    context.add_init_script(f"localStorage.setItem('tgwui::parameters', '{PARAMETERS_KEPT}')")
    page = watched(context.new_page())
    goto(page, f"{url}/login", wait=False)
    page.get_by_label("Key").fill("admin")
    page.get_by_role("button", name="Log in").click()
    goto(page, url)
    act(page)
    page.mouse.move(0, 0)
    save(page.screenshot(), IMAGES / f"web-page-{act.__name__}-{look}.png")
    context.close()


def save(png: bytes, path: Path) -> None:
    """Write it as small as it stays readable."""
    picture = Image.open(io.BytesIO(png)).convert("RGB")
    picture.quantize(NUM_COLOURS).save(path, optimize=True)


def main() -> None:
    """All pictures."""
    IMAGES.mkdir(exist_ok=True)
    flags = ("--model", "demo", "--loader", "auto")
    keys = {"TGWUI_ADMIN_KEY": "admin", "TGWUI_API_KEY": "user"}
    with sync_playwright() as playwright, PageServer(*flags, variables=keys) as server:
        browser = playwright.chromium.launch(
            executable_path=os.environ["TEST_BROWSER"], args=list(FLAGS)
        )
        for act, look in product(TABS, LOOKS):
            take(browser, server.page_url, act, look)
        browser.close()


if __name__ == "__main__":
    main()
