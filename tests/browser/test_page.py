"""The page over the real server with the demo model, as a new user meets it."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from playwright.sync_api import Page, expect

from tests.browser.conftest import (
    PHONE,
    Open,
    answered,
    ask,
    generating,
    goto,
    last_answer,
    open_tab,
    watched,
)
from tests.helpers.page_process import PageServer, RoundRobin

QUESTION = "How do models get on EFS?"
CHATS = """Object.entries(localStorage).filter(([name]) => name.includes(":chat:"))
    .map(([, chat]) => JSON.parse(chat))"""
"""What the browser keeps."""

CHAT, NOTEBOOK, PARAMETERS, MODEL, ENGINE = range(5)


@pytest.fixture(name="server", scope="module")
def _server() -> Iterator[PageServer]:
    names = ("--served-model-name", "demo", "--served-model-name", "second")
    with PageServer("--model", "demo", "--loader", "auto", "--num-threads", "1", *names) as server:
        yield server


def footers(page: Page) -> list[str]:
    return [text for text in page.locator(".tgwui-foot span").all_inner_texts() if text]


def set_parameter(page: Page, name: str, value: str) -> None:
    open_tab(page, PARAMETERS)
    field = page.locator(f"#tgwui-parameter-{name} input").first
    field.fill(value)
    field.press("Tab")
    open_tab(page, CHAT)


def test_a_chat_from_question_to_branches(server: PageServer, open_page: Open) -> None:
    """Answer with its figures, reload, regenerate, versions, edit, branch, delete."""
    page = open_page(server.page_url)
    ask(page, QUESTION)
    first = last_answer(page)
    assert len(first) > 20
    assert re.search(r"\d+ tokens · [\d.]+ tokens/s · first after [\d.]+ s", footers(page)[0])

    goto(page, page.url)
    expect(page.locator("#tgwui-chat .bot-row .message-content")).to_have_text(first)
    assert "tokens/s" in footers(page)[0]

    with generating(page):
        page.click("#tgwui-regenerate")
    answered(page)
    expect(page.locator(".bot-row .tgwui-foot")).to_contain_text("2/2")
    page.get_by_label("Previous version").click()
    expect(page.locator("#tgwui-chat .bot-row .message-content")).to_have_text(first)

    page.locator("#tgwui-chat .user-row").hover()
    page.get_by_label("Edit").first.click()
    page.locator("#tgwui-chat .user-row textarea, #tgwui-chat textarea").first.fill("What is EFS?")
    with generating(page):
        page.get_by_label("Submit").first.click()
    answered(page)
    expect(page.locator("#tgwui-chat .user-row .message-content")).to_have_text("What is EFS?")
    expect(page.locator(".user-row .tgwui-foot")).to_contain_text("2/2")

    page.click("#tgwui-branch")
    expect(page.locator(".tgwui-foot button")).to_have_count(0)
    expect(page.locator("#tgwui-chat .user-row .message-content")).to_have_text("What is EFS?")
    page.once("dialog", lambda dialog: dialog.accept())
    page.click("#tgwui-delete")
    expect(page.locator(".user-row .tgwui-foot")).to_contain_text("2/2")


def test_stop_keeps_the_text_and_continue_goes_on(server: PageServer, open_page: Open) -> None:
    """The text at the token limit, or when stopped, is the beginning of what comes then."""
    page = open_page(server.page_url)
    set_parameter(page, "max_tokens", "8")
    ask(page, QUESTION)
    short = last_answer(page)
    assert footers(page)[0].endswith("the token limit was reached")

    with generating(page):
        page.click("#tgwui-continue")
    answered(page)
    longer = last_answer(page)
    assert longer.startswith(short)
    assert len(longer) > len(short)
    assert footers(page)[0].startswith("16 tokens")

    set_parameter(page, "max_tokens", "300")
    with generating(page):
        page.click("#tgwui-continue")
    answered(page)
    assert last_answer(page).startswith(longer)
    assert len(last_answer(page)) > len(longer)

    page.click("#tgwui-new")
    open_tab(page, PARAMETERS)
    page.locator("#tgwui-parameter-ignore_eos input").check()
    open_tab(page, CHAT)
    ask(page, QUESTION, wait=False)
    expect(page.locator("#tgwui-chat .bot-row .message-content")).not_to_have_text("…")
    page.keyboard.press("Escape")
    answered(page)
    assert footers(page)[0].endswith("stopped")
    assert last_answer(page)


def test_an_answer_stays_in_its_chat(server: PageServer, open_page: Open) -> None:
    """Who opens another chat in mid-answer has stopped it, and finds all of it after a reload."""
    page = open_page(server.page_url)
    open_tab(page, PARAMETERS)
    page.locator("#tgwui-parameter-ignore_eos input").check()
    open_tab(page, CHAT)
    ask(page, QUESTION, wait=False)
    expect(page.locator("#tgwui-chat .bot-row .message-content")).not_to_have_text("…")
    page.click("#tgwui-new")
    answered(page)
    expect(page.locator("#tgwui-chat .message-row")).to_have_count(0)
    (kept,) = page.evaluate(CHATS)
    (answer,) = [node for node in kept["nodes"].values() if node["role"] == "assistant"]
    assert (answer["state"], bool(answer["text"])) == ("stopped", True)
    assert answer["stats"]["tokens"] == len(answer["tokens"])


def test_two_tabs_lose_nothing_of_one_chat(server: PageServer, open_page: Open) -> None:
    """Each keeps the whole chat, so each has to know what the other has added."""
    page = open_page(server.page_url)
    ask(page, "one")
    other = watched(page.context.new_page())
    goto(other, server.page_url)
    ask(page, "two")
    ask(other, "three")
    (kept,) = page.evaluate(CHATS)
    asked = {node["text"] for node in kept["nodes"].values() if node["role"] == "user"}
    assert asked == {"one", "two", "three"}
    expect(page.locator(".user-row .tgwui-foot").last).to_contain_text("1/2")
    page.get_by_label("Next version").last.click()
    expect(page.locator("#tgwui-chat .user-row .message-content").last).to_have_text("three")
    expect(page.locator("#tgwui-chat .bot-row .message-content").last).not_to_be_empty()
    assert other.watch.problems == []  # type: ignore[attr-defined]


def test_markdown_and_formulas_of_an_answer(server: PageServer, open_page: Open) -> None:
    """Code with its copy button, formulas without a network; the answer is forced by a choice."""
    answer = (
        "Take **two**:\n```python\nprint(1)\n```\nand $$x^2$$ or \\(a_b\\)<img src=http://x.y/z>"
    )
    page = open_page(server.page_url)
    open_tab(page, PARAMETERS)
    page.locator("#tgwui-extra .cm-content").fill(json.dumps({"guided_choice": [answer]}))
    open_tab(page, CHAT)
    ask(page, QUESTION)

    row = page.locator("#tgwui-chat .bot-row")
    expect(row.locator("strong")).to_have_text("two")
    expect(row.locator("code.language-python .token").first).to_be_visible()
    expect(row.locator(".copy_code_button")).to_be_visible()
    expect(row.locator(".katex")).to_have_count(2)
    # The policy keeps the picture's address from being asked; the browser says so.
    page.watch.problems = [  # type: ignore[attr-defined]
        problem
        for problem in page.watch.problems  # type: ignore[attr-defined]
        if "x.y" not in problem
    ]


def test_chats_leave_and_come_back_as_a_file(
    server: PageServer, open_page: Open, tmp_path: Path
) -> None:
    """Export in one browser, import in another; a wrong file is refused."""
    page = open_page(server.page_url)
    ask(page, QUESTION)
    said = last_answer(page)
    with page.expect_download() as download:
        page.click("#tgwui-export")
    file = tmp_path / "chats.json"
    download.value.save_as(file)
    assert json.loads(file.read_text())["format"] == "tgwui-k8s chats"

    other = open_page(server.page_url)
    for content, works in (("{}", False), (file.read_text(), True)):
        file.write_text(content)
        with other.expect_file_chooser() as chooser:
            other.click("#tgwui-import")
        chooser.value.set_files(file)
        if works:
            expect(other.locator("#tgwui-chat .bot-row .message-content")).to_have_text(said)
        else:
            expect(other.locator("#tgwui-notice")).to_contain_text("holds no chats")


HOSTILE = """<script>hacked = 1</script><img src="data:," onerror="hacked = 2">
<svg onload="hacked = 3"></svg><iframe srcdoc="<script>parent.hacked = 4</script>"></iframe>
[link](javascript:hacked=5) <a href="javascript:hacked=6">link</a>"""


def test_hostile_chats_stay_text(server: PageServer, open_page: Open, tmp_path: Path) -> None:
    """Whoever wrote the file, or the answer: nothing of it runs, here or after a reload."""
    thread = [("1-a", None, "user"), ("2-a", "1-a", "assistant")]
    nodes = {
        name: {"parent": parent, "role": role, "text": HOSTILE, "reasoning": HOSTILE}
        for name, parent, role in thread
    }
    chat = {"nodes": nodes, "leaf": "2-a", "system": HOSTILE, "template": HOSTILE}
    file = tmp_path / "chats.json"
    file.write_text(json.dumps({"format": "tgwui-k8s chats", "chats": [chat]}))
    page = open_page(server.page_url)
    with page.expect_file_chooser() as chooser:
        page.click("#tgwui-import")
    chooser.value.set_files(file)
    for _ in range(2):
        rows = page.locator("#tgwui-chat .message-row")
        expect(rows).to_have_count(2)
        for link in page.locator("#tgwui-chat a").all():
            link.dispatch_event("click")
        assert page.evaluate("typeof hacked") == "undefined"
        assert page.locator("#tgwui-chat :is(script, iframe)").count() == 0
        goto(page, page.url)


def test_notebook(server: PageServer, open_page: Open) -> None:
    """From the cursor, with what follows left in place; tokens and prompt by probability."""
    page = open_page(server.page_url)
    open_tab(page, NOTEBOOK)
    area = page.locator("#tgwui-notebook textarea")
    area.fill("This is a cake recipe:\n\n1. THE END")
    area.evaluate("area => area.setSelectionRange(26, 26)")
    with generating(page):
        page.click("#tgwui-notebook-generate")
    page.wait_for_selector("body:not([data-notebook=running])")
    expect(area).to_have_value(re.compile(r"1\..{40,} THE END$", re.DOTALL))
    tokens = page.locator(".tgwui-token")
    assert tokens.count() > 20
    tokens.nth(3).hover()
    expect(page.locator(".tgwui-token-detail tbody tr").first).to_contain_text("%")

    page.click("#tgwui-notebook-undo")
    expect(area).to_have_value("This is a cake recipe:\n\n1. THE END")
    page.click("#tgwui-notebook-colour")
    expect(tokens.first).to_have_text("This")
    expect(tokens.first).to_have_class(re.compile("tgwui-level-none"))
    assert "".join(tokens.all_text_contents()) == "This is a cake recipe:\n\n1. THE END"


def test_parameters(server: PageServer, open_page: Open) -> None:
    """A preset sets the samplers, programs show them, and they are still set after a reload."""
    page = open_page(server.page_url)
    open_tab(page, PARAMETERS)
    page.locator("#tgwui-preset input").click()
    page.get_by_role("option", name="Midnight Enigma", exact=True).click()
    temperature = page.locator("#tgwui-parameter-temperature input[type=number]")
    expect(temperature).to_have_value("0.95")
    page.get_by_role("button", name="The same request from a program").click()
    expect(page.locator("#tgwui-curl")).to_contain_text('"typical_p": 0.6')
    expect(page.locator("#tgwui-python")).to_contain_text("temperature=0.95")
    expect(page.locator("#tgwui-python")).to_contain_text('"typical_p": 0.6')
    expect(page.locator("#tgwui-curl")).to_contain_text(f"{server.url}/v1/chat/completions")
    expect(page.locator("#tgwui-python")).to_contain_text(f'base_url="{server.url}/v1"')

    page.locator("#tgwui-served input").click()
    page.get_by_role("option", name="second", exact=True).click()
    expect(page.locator("#tgwui-curl")).to_contain_text('"model": "second"')

    goto(page, page.url)
    open_tab(page, PARAMETERS)
    expect(page.locator("#tgwui-served input")).to_have_value("second")
    expect(temperature).to_have_value("0.95")
    page.click("#tgwui-reset")
    expect(temperature).to_have_value("1")


def test_model_and_engine(server: PageServer, open_page: Open) -> None:
    """What is loaded, and figures that move when somebody asks."""
    page = open_page(server.page_url)
    open_tab(page, MODEL)
    facts = page.locator(".tgwui-facts")
    expect(facts).to_contain_text("LlamaForCausalLM")
    expect(facts).to_contain_text("blocks of 16 tokens")
    expect(page.locator("#tgwui-model")).to_contain_text("--admin-key-file")
    open_tab(page, ENGINE)
    expect(page.locator(".tgwui-plot")).to_have_count(6)
    server.complete(max_tokens=50)
    generated = page.locator(".tgwui-plot", has_text="Tokens per second").locator("path").first
    expect(generated).to_have_attribute("d", re.compile(r"[ML][\d.]+ (?!104\.0)\d"))
    expect(page.locator(".tgwui-errors")).to_contain_text("None since the pods started")
    assert server.complete(temperature=-1).status_code == 400
    expect(page.locator(".tgwui-errors td")).to_have_text(
        [
            re.compile(":"),
            "pod-a",
            "/v1/completions",
            "400",
            "decimal_below_min_value",
            "1",
            re.compile("."),
        ]
    )
    with page.context.expect_page() as docs:
        page.get_by_role("link", name="API documentation").click()
    expect(docs.value.locator("body")).to_contain_text("/v1/chat/completions")


def test_the_api_and_the_page_at_one_address(server: PageServer, open_page: Open) -> None:
    """As Kong has them: `/api` is stripped and is the API's, everything else is the page's."""
    balancer = RoundRobin([server.page_url], elsewhere={"/api": server.url})
    with balancer.serving() as url:
        assert httpx.get(f"{url}/api/v1/models").json()["data"][0]["id"] == "demo"
        page = open_page(url)
        ask(page, QUESTION)
        assert len(last_answer(page)) > 20
        open_tab(page, MODEL)
        expect(page.locator(".tgwui-facts")).to_contain_text("LlamaForCausalLM")
    # The script's own requests bring a session, no key: the page must see them.
    assert [path for one, path in balancer.served if one == server.url] == ["/v1/models"]


def test_errors_say_what_to_do(server: PageServer, open_page: Open) -> None:
    """A conversation that is too long: in words, and the text is not lost."""
    page = open_page(server.page_url)
    page.watch.expects_failures = True  # type: ignore[attr-defined]
    ask(page, "word " * 3000)
    notice = page.get_by_role("alert")
    expect(notice).to_contain_text("longer than the model's context")
    expect(notice.get_by_role("button", name="Try again")).to_be_visible()
    expect(page.locator("#tgwui-chat .user-row")).to_have_count(1)
    notice.get_by_role("button", name="Dismiss").click()
    expect(notice).to_be_empty()

    page.click("#tgwui-regenerate")
    expect(notice).to_contain_text("longer than the model's context")
    page.click("#tgwui-new")  # "Try again" would be about the other chat
    expect(notice).to_be_empty()


def test_pods_that_are_gone_leave_the_plots(server: PageServer, open_page: Open) -> None:
    """A page that stays open over roll-outs shows the pods of today."""
    page = open_page(server.page_url)
    take = """async () => {
        const { Engine } = await import("/page/static/engine.js");
        const engine = new Engine();
        for (const [pod, time] of [["gone", 0], ["there", 60], ["there", 121]])
            engine.take(pod, new Map(), time);
        return [...engine.pods.keys()];
    }"""
    assert page.evaluate(take) == ["there"]


def test_programs_are_told_where_the_api_is(server: PageServer, open_page: Open) -> None:
    """The operator's word; without one the page's own origin behind a proxy, else the port."""
    page = open_page(server.page_url)
    told = """async ([api, root, address]) => {
        const parameters = await import("/page/static/parameters.js");
        return parameters.address({ port: "5000", ...api }, root, new URL(address));
    }"""
    known = {"url": "", "root": ""}
    for api, root, shown, expected in (
        ({"url": "https://llm", "root": ""}, "", "http://pod:7860", "https://llm/v1"),
        (known, "", "http://pod:7860", "http://pod:5000/v1"),
        (known, "/webui", "http://pod:8080/webui/", "http://pod:8080/v1"),
        (known, "", "https://chat.org:8443/", "https://chat.org:8443/v1"),
        ({"url": "", "root": "/llm"}, "", "http://chat.org/", "http://chat.org/llm/v1"),
    ):
        assert page.evaluate(told, [api, root, shown]) == expected


def test_chinese_on_a_dark_phone(server: PageServer, open_page: Open) -> None:
    """The browser decides language and theme; everything fits a narrow screen."""
    page = open_page(server.page_url, viewport=PHONE, locale="zh-CN", color_scheme="dark")
    expect(page.locator("body")).to_have_class(re.compile("dark"))
    expect(page.locator("#tgwui-tabs [role=tab]:visible").first).to_have_text("对话")
    expect(page.locator("#tgwui-message textarea")).to_have_attribute(
        "placeholder", re.compile("输入消息")
    )
    ask(page, QUESTION)
    assert "个词元" in footers(page)[0]
    clear = page.locator("#tgwui-chat .top-panel")
    expect(clear).to_have_count(1)
    expect(clear).to_be_hidden()
    assert page.evaluate("document.documentElement.scrollWidth") <= PHONE["width"]
    page.click("#tgwui-theme")
    expect(page.locator("body")).not_to_have_class(re.compile("dark"))


def test_keyboard_alone(server: PageServer, open_page: Open) -> None:
    """The message has the focus; Enter sends, Tab reaches the buttons, Enter presses them."""
    page = open_page(server.page_url)
    page.keyboard.type(QUESTION)
    with generating(page):
        page.keyboard.press("Enter")
    answered(page)
    page.focus("#tgwui-regenerate")
    with generating(page):
        page.keyboard.press("Enter")
    answered(page)
    page.get_by_label("Previous version").focus()
    page.keyboard.press("Enter")
    expect(page.locator(".bot-row .tgwui-foot")).to_contain_text("1/2")
