"""Two replicas behind a load balancer that sends every request to another one, below a prefix."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
from playwright.sync_api import Page, Route, expect

from tests.browser.conftest import Open, answered, ask, generating, goto, last_answer, open_tab
from tests.helpers.page_process import PageServer, RoundRobin

API_KEY, ADMIN_KEY = "sk-user-0123456789", "sk-admin-0123456789"
MODEL, ENGINE = 3, 4
PREFIX = "/webui"


class Cluster:
    """The replicas, their load balancer and the address people know."""

    def __init__(self, replicas: list[PageServer], balancer: RoundRobin, url: str) -> None:
        self.replicas = replicas
        self.balancer = balancer
        self.url = url


@pytest.fixture(name="cluster", scope="module")
def _cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    keys = tmp_path_factory.mktemp("keys")
    (keys / "api").write_text(f"{API_KEY}\n")
    (keys / "admin").write_text(f"{ADMIN_KEY}\n")
    flags = (
        *("--api-key-file", str(keys / "api"), "--admin-key-file", str(keys / "admin")),
        *("--webui-root-path", PREFIX, "--model-dir", str(_models(tmp_path_factory.mktemp("m")))),
    )
    options = {"tokens_per_second": 40}
    with (
        PageServer(*flags, pod="pod-a", options=options) as one,
        PageServer(*flags, pod="pod-b", options=options) as other,
    ):
        urls = [server.page_url.removesuffix(PREFIX) for server in (one, other)]
        balancer = RoundRobin(urls, PREFIX)
        with balancer.serving() as url:
            yield Cluster([one, other], balancer, f"{url}/")


def _models(folder: Path) -> Path:
    """A model directory with something that no loader can load."""
    (folder / "broken").mkdir()
    (folder / "broken" / "config.json").write_text("{")
    return folder


def log_in(page: Page, key: str) -> None:
    page.get_by_label("Key").fill(key)
    page.get_by_role("button", name="Log in").click()


def open_logged_in(open_page: Open, cluster: Cluster, key: str = API_KEY) -> Page:
    page = open_page(cluster.url, wait=False)
    log_in(page, key)
    goto(page, cluster.url)
    return page


def test_login_holds_on_every_replica(cluster: Cluster, open_page: Open) -> None:
    """A wrong key stays outside, a right one is let in everywhere; no key is in any address."""
    page = open_page(cluster.url, wait=False)
    page.watch.expects_failures = True  # type: ignore[attr-defined]
    assert page.url.endswith(f"{PREFIX}/login")
    log_in(page, "sk-wrong")
    expect(page.get_by_role("alert")).to_have_text("This key is not known here.")
    log_in(page, API_KEY)
    page.wait_for_selector("body[data-ready]")
    for _ in range(2):
        goto(page, cluster.url)
    cookies = page.context.cookies()
    assert [(cookie["httpOnly"], cookie["path"]) for cookie in cookies] == [(True, PREFIX)]
    assert API_KEY not in str(cookies)
    assert API_KEY not in str(cluster.balancer.served)

    page.click("#tgwui-log-out")
    page.wait_for_url("**/login")
    page.goto(cluster.url)
    assert page.url.endswith("/login")


def test_a_chat_uses_both_replicas(cluster: Cluster, open_page: Open) -> None:
    """Each message is answered by whichever is next; the chat is in the browser and whole."""
    page = open_logged_in(open_page, cluster)
    cluster.balancer.served.clear()
    for number, text in enumerate(("one", "two", "three"), start=1):
        ask(page, text, wait=False)
        expect(page.locator("#tgwui-chat .bot-row .message-content")).to_have_count(number)
        expect(page.locator("#tgwui-chat .bot-row .message-content").last).not_to_have_text("…")
        page.click("#tgwui-stop")
        answered(page)
    answers = [one for one, path in cluster.balancer.served if path.endswith("/completions")]
    assert len(answers) == 3
    open_tab(page, ENGINE)
    expect(page.locator(".tgwui-plot").first).to_contain_text("running pod-a")
    expect(page.locator(".tgwui-plot").first).to_contain_text("running pod-b")
    goto(page, cluster.url)
    expect(page.locator("#tgwui-chat .user-row")).to_have_count(3)


def test_an_admin_loads_and_unloads(cluster: Cluster, open_page: Open) -> None:
    """List, a failure in words, unload, load with progress, the model's name afterwards."""
    page = open_logged_in(open_page, cluster, ADMIN_KEY)
    page.watch.expects_failures = True  # type: ignore[attr-defined]
    open_tab(page, MODEL)
    expect(page.locator(".tgwui-models")).to_contain_text("broken")
    expect(page.locator("#tgwui-model")).to_contain_text(re.compile("changes the pod pod-[ab]"))
    page.select_option("#tgwui-model-choice", "broken")
    page.click("#tgwui-model-load")
    expect(page.get_by_role("alert").first).to_contain_text("config.json")

    page.select_option("#tgwui-model-choice", "demo")
    page.fill(
        "#tgwui-model-settings",
        '{"loader": "fake", "loader_option": "load_seconds=1.5,load_bytes=1000000"}',
    )
    page.click("#tgwui-model-load")
    expect(page.locator("#tgwui-progress progress[max='1000000']")).to_be_visible()
    expect(page.locator("#tgwui-progress")).to_have_text("demo is loaded.")
    page.once("dialog", lambda dialog: dialog.accept())
    page.click("#tgwui-model-unload")
    expect(page.locator("#tgwui-progress")).to_contain_text("unloaded")
    # The answer is one replica's; put the model back there for the other tests.
    empty = next(one for one in cluster.replicas if one.get("/health/ready").status_code == 503)
    answer = empty.http.post(
        f"{empty.url}/v1/internal/model/load",
        json={
            "model_name": "demo",
            "args": {"loader": "fake", "loader_option": "tokens_per_second=40"},
        },
        headers={"authorization": f"Bearer {ADMIN_KEY}"},
    )
    assert answer.status_code == 200, answer.text


def test_an_admin_loads_adapters(cluster: Cluster, open_page: Open) -> None:
    """What the API's routes say, each with the button that changes it; the API is played here."""
    loaded: list[str] = ["old"]
    changes: list[tuple[str, object]] = []

    def info(route: Route) -> None:
        answer = route.fetch()
        facts = {**answer.json(), "lora_names": loaded}
        facts["capabilities"]["adapters"] = True
        route.fulfill(json=facts)

    def change(route: Route) -> None:
        changes.append((route.request.url.rsplit("/", 1)[1], route.request.post_data_json))
        loaded.append("new")
        route.fulfill(json="OK")

    page = open_logged_in(open_page, cluster, ADMIN_KEY)
    page.route("**/model/info", info)
    page.route("**/lora/list", lambda route: route.fulfill(json={"lora_names": ["new", "old"]}))
    page.route("**/lora/load", change)
    open_tab(page, MODEL)
    rows = page.locator(".tgwui-adapters li")
    expect(rows).to_have_text(["Load new", "Unload old"])
    rows.first.get_by_role("button").click()
    expect(rows).to_have_text(["Unload new", "Unload old"])
    assert changes == [("load", {"lora_names": ["new"]})]


def test_a_user_cannot_change_the_model(cluster: Cluster, open_page: Open) -> None:
    """The page says which key it takes."""
    page = open_logged_in(open_page, cluster)
    open_tab(page, MODEL)
    expect(page.locator("#tgwui-model")).to_contain_text("needs the admin key")
    expect(page.locator("#tgwui-model-load")).to_have_count(0)


def test_a_page_that_dies_comes_back_and_the_api_stays(cluster: Cluster, open_page: Open) -> None:
    """Who comes in the meantime is told so, and sees it come back; `/health` notices nothing."""
    server = cluster.replicas[0]
    page = open_page(server.page_url.removesuffix(PREFIX) + "/login", wait=False)
    page.watch.expects_failures = True  # type: ignore[attr-defined]
    server.page.kill()
    page.reload()
    expect(page.get_by_role("heading", name="The page is starting")).to_be_visible()
    assert server.get("/health/live").status_code == 200
    expect(page.get_by_label("Key")).to_be_visible()
    assert any("starting it again" in str(line.get("msg")) for line in server.log)


def test_a_pod_that_goes_away_leaves_the_text(cluster: Cluster, open_page: Open) -> None:
    """In mid-answer, with everything in it: what came stays, and Continue goes on elsewhere."""
    page = open_logged_in(open_page, cluster)
    page.watch.expects_failures = True  # type: ignore[attr-defined]
    ask(page, "Hello", wait=False)
    answer = page.locator("#tgwui-chat .bot-row .message-content")
    expect(answer).to_have_text(re.compile(r"\w{3}"))
    answering = [one for one, path in cluster.balancer.served if path.endswith("/completions")][-1]
    server = next(one for one in cluster.replicas if one.page_url.startswith(answering))
    pod = [psutil.Process(server.process.pid), *server.children()]
    for process in pod:
        process.suspend()  # so that none can say that another is gone
    for process in pod:
        process.kill()
    answered(page)
    expect(page.get_by_role("alert").first).to_contain_text("The connection broke in mid-answer")
    expect(page.locator(".bot-row .tgwui-foot")).to_contain_text("interrupted")
    said = last_answer(page)
    assert said

    with generating(page):
        page.click("#tgwui-continue")
    answer_has_grown = "said => document.querySelector('#tgwui-chat .bot-row .message-content')"
    page.wait_for_function(f"{answer_has_grown}.innerText.length > said.length + 20", arg=said)
    page.keyboard.press("Escape")
    answered(page)
    assert last_answer(page).startswith(said)
