"""The page's way to the API: what passes, and what comes back when the API does not."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable

import httpx
import pytest
from starlette.applications import Starlette
from starlette.requests import ClientDisconnect, Request
from starlette.routing import Route
from starlette.types import ASGIApp, Receive, Scope, Send

from tgwui_k8s.ui import model_load
from tgwui_k8s.ui.engine_state import EngineState
from tgwui_k8s.ui.keys import ANONYMOUS, Login
from tgwui_k8s.ui.model_load import ModelLoad
from tgwui_k8s.ui.proxy import Proxy

Api = Callable[[httpx.Request], httpx.Response]


def page(api: Api, login: Login = ANONYMOUS) -> httpx.AsyncClient:
    """The page's routes over an API that is a function, for somebody who has logged in."""
    client = httpx.AsyncClient(transport=httpx.MockTransport(api), base_url="http://api")
    routes = [
        Route("/page/api/{path:path}", Proxy(client).__call__, methods=["GET", "POST"]),
        Route("/page/engine", EngineState(client, "pod-a").__call__),
        Route("/page/load", ModelLoad(client).__call__, methods=["POST"]),
    ]
    app = with_login(Starlette(routes=routes), login)
    return httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://page")


def with_login(app: ASGIApp, login: Login = ANONYMOUS) -> ASGIApp:
    async def call(scope: Scope, receive: Receive, send: Send) -> None:
        await app({**scope, "login": login}, receive, send)

    return call


async def test_a_request_passes_with_the_sessions_key() -> None:
    """Body, query and the key; nothing else that the browser has sent."""
    seen: list[httpx.Request] = []

    def api(request: httpx.Request) -> httpx.Response:
        seen.append(request)
        request.read()
        return httpx.Response(503, headers={"retry-after": "7", "x-secret": "1"}, json={"a": 1})

    client = page(api, Login("sk-1", "user"))
    answer = await client.post(
        "/page/api/v1/chat/completions?x=1", json={"messages": []}, headers={"cookie": "c=1"}
    )

    assert (answer.status_code, answer.json(), answer.headers["retry-after"]) == (
        503,
        {"a": 1},
        "7",
    )
    assert "x-secret" not in answer.headers
    (request,) = seen
    assert str(request.url) == "http://api/v1/chat/completions?x=1"
    assert json.loads(request.content) == {"messages": []}
    assert request.headers["authorization"] == "Bearer sk-1"
    assert "cookie" not in request.headers


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("GET", "/page/api/v1/internal/stop-generation"),
        ("POST", "/page/api/v1/internal/stop-generation"),
        ("POST", "/page/api/v1/internal/model/load"),
        ("GET", "/page/api/../etc"),
        ("POST", "/page/api/metrics"),
    ],
)
async def test_only_what_the_page_uses_passes(method: str, path: str) -> None:
    """The API never hears of the rest."""

    def api(request: httpx.Request) -> httpx.Response:
        raise AssertionError("asked")

    assert (await page(api).request(method, path)).status_code == 404


async def test_an_api_that_is_not_there() -> None:
    """An error with a code that the page has words for."""

    def api(request: httpx.Request) -> httpx.Response:
        raise httpx.ConnectError("refused")

    answer = await page(api).get("/page/api/metrics")

    assert (answer.status_code, answer.json()["error"]["code"]) == (502, "api_unreachable")


async def test_an_api_that_dies_in_mid_answer() -> None:
    """What has come is delivered; that `[DONE]` is missing tells the rest."""

    async def body() -> AsyncIterator[bytes]:
        yield b"data: 1\n\n"
        raise httpx.ReadError("reset")

    answer = await page(lambda request: httpx.Response(200, content=body())).get(
        "/page/api/metrics"
    )

    assert answer.text == "data: 1\n\n"


async def test_a_browser_that_leaves_ends_the_request() -> None:
    """The generation is for nobody any more."""
    closed = asyncio.Event()

    async def body() -> AsyncIterator[bytes]:
        try:
            while True:
                yield b"data: 1\n\n"
                await asyncio.sleep(0.01)
        finally:
            closed.set()

    client = httpx.AsyncClient(
        transport=httpx.MockTransport(lambda request: httpx.Response(200, content=body())),
        base_url="http://api",
    )
    messages: list[dict[str, object]] = []
    streaming = asyncio.Event()

    async def receive() -> dict[str, object]:
        await streaming.wait()
        return {"type": "http.disconnect"}

    async def send(message: dict[str, object]) -> None:
        messages.append(message)
        if len(messages) == 3:
            streaming.set()

    app = with_login(Starlette(routes=[Route("/page/api/{path:path}", Proxy(client).__call__)]))
    scope = {"type": "http", "method": "GET", "path": "/page/api/metrics", "query_string": b""}
    await app({**scope, "headers": []}, receive, send)  # type: ignore[arg-type]

    assert closed.is_set()


async def test_a_browser_that_leaves_the_queue_ends_the_request() -> None:
    """Before the first byte of the answer too: nobody waits for nobody."""
    asked, ended = asyncio.Event(), asyncio.Event()

    async def api(request: httpx.Request) -> httpx.Response:
        assert await request.aread() == b"{}"
        asked.set()
        try:
            await asyncio.Event().wait()
        finally:
            ended.set()
        raise AssertionError("unreachable")

    messages = iter([{"type": "http.request", "body": b"{}", "more_body": False}])

    async def receive() -> dict[str, object]:
        if message := next(messages, None):
            return message
        await asked.wait()
        return {"type": "http.disconnect"}

    client = httpx.AsyncClient(transport=httpx.MockTransport(api), base_url="http://api")
    request = Request(
        {
            **{"type": "http", "method": "POST", "headers": [], "query_string": b""},
            **{"path_params": {"path": "v1/completions"}, "login": ANONYMOUS},
        },
        receive,  # type: ignore[arg-type]
    )
    with pytest.raises(ClientDisconnect):
        await asyncio.wait_for(Proxy(client)(request), 10)
    assert ended.is_set()


@pytest.fixture(name="quick")
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(model_load, "INTERVAL_SECONDS", 0.001)


def events(text: str) -> list[tuple[str, dict[str, object]]]:
    parts = [part.split("\n") for part in text.strip().split("\n\n")]
    return [
        (one.removeprefix("event: "), json.loads(two.removeprefix("data: "))) for one, two in parts
    ]


@pytest.mark.usefixtures("quick")
async def test_a_load_tells_how_far_it_is() -> None:
    """Phases and bytes as the API says them, then that it is done."""
    asked: list[str] = []
    seen_loading = asyncio.Event()

    async def api(request: httpx.Request) -> httpx.Response:
        if request.url.path == "/health/startup":
            asked.append("progress")
            if len(asked) == 3:
                seen_loading.set()
            progress = {"phase": "loading", "bytes_read": len(asked), "bytes_total": 9}
            return httpx.Response(503, json={**progress, "error": {}})
        assert request.headers["authorization"] == "Bearer sk-admin"
        assert json.loads(request.content) == {"model_name": "m"}
        await seen_loading.wait()
        return httpx.Response(200, json="OK")

    answer = await page(api, Login("sk-admin", "admin")).post(
        "/page/load", json={"model_name": "m"}
    )

    told = events(answer.text)
    assert told[-1] == ("done", {})
    assert told[0] == ("progress", {"phase": "loading", "bytes_read": 1, "bytes_total": 9})
    assert len(told) >= 4


@pytest.mark.usefixtures("quick")
@pytest.mark.parametrize(
    ("answer", "error"),
    [
        (
            httpx.Response(403, json={"error": {"message": "No.", "code": "permission_denied"}}),
            {"message": "No.", "code": "permission_denied"},
        ),
        (httpx.Response(502, text="<html>"), {"message": "The API answered 502.", "code": None}),
        (None, {"message": "The API of this pod does not answer.", "code": "api_unreachable"}),
    ],
)
async def test_a_load_that_fails_says_why(
    answer: httpx.Response | None, error: dict[str, object]
) -> None:
    """The API's own words, whatever came, or that nothing came."""

    def api(request: httpx.Request) -> httpx.Response:
        if answer is None or request.url.path == "/health/startup":
            raise httpx.ConnectError("refused")
        return answer

    told = events((await page(api).post("/page/load", json={})).text)

    assert told[-1] == ("error", error)
    assert all(event == ("progress", {}) for event in told[:-1])


async def test_settings_of_a_megabyte_are_not_read() -> None:
    """The page's memory is the pod's."""

    def api(request: httpx.Request) -> httpx.Response:
        raise AssertionError("asked")

    answer = await page(api).post("/page/load", content=b"x" * 1_000_000)

    assert (answer.status_code, answer.json()["error"]["code"]) == (413, "payload_too_large")


async def test_the_engine_in_one_answer() -> None:
    """Metrics and errors of the same pod, with the key that the errors need."""

    def api(request: httpx.Request) -> httpx.Response:
        if request.url.path == "/metrics":
            return httpx.Response(200, text="tgwui_x 1")
        assert request.url.path == "/v1/internal/errors"
        assert request.headers["authorization"] == "Bearer sk-1"
        return httpx.Response(200, json={"errors": [{"status": 503}]})

    answer = await page(api, Login("sk-1", "user")).get("/page/engine")

    assert answer.json() == {"pod": "pod-a", "metrics": "tgwui_x 1", "errors": [{"status": 503}]}
    assert answer.headers["cache-control"] == "no-store"


@pytest.mark.parametrize("is_there", [True, False])
async def test_no_engine_to_tell_of(is_there: bool) -> None:
    """The API's own words where it has some."""

    def api(request: httpx.Request) -> httpx.Response:
        if not is_there:
            raise httpx.ConnectError("refused")
        return httpx.Response(401, json={"error": {"code": "invalid_api_key"}})

    answer = await page(api).get("/page/engine")

    code = answer.json()["error"]["code"]
    expected = (401, "invalid_api_key") if is_there else (502, "api_unreachable")
    assert (answer.status_code, code) == expected
