"""Request ids, traces, limits, counters and the answer to whatever a route raises."""

from __future__ import annotations

import asyncio
import logging
import re
from collections.abc import AsyncIterator, Awaitable, Callable

import httpx
import pytest
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Router
from starlette.types import Message, Receive, Scope, Send

from tests.helpers.still_backend import make_state
from tgwui_k8s.api.app import create_app
from tgwui_k8s.api.middleware import BodyLimit, RequestMiddleware
from tgwui_k8s.api.plain_route import PlainRoute
from tgwui_k8s.api.state import ServerState
from tgwui_k8s.errors import DrainingError, InvalidRequestError
from tgwui_k8s.observability.log import request_id_var, trace_id_var

TRACE = "0af7651916cd43dd8448eb211c80319c"
TRACEPARENT = f"00-{TRACE}-b7ad6b7169203331-01"

Endpoint = Callable[[Request], Awaitable[Response]]


async def _hello(request: Request) -> Response:
    return PlainTextResponse("hello")


def _client(state: ServerState, endpoint: Endpoint = _hello, path: str = "/x") -> httpx.AsyncClient:
    """A client of one route behind the middleware."""
    routes = [PlainRoute(path, endpoint, methods=["GET", "POST"])]
    app = RequestMiddleware(BodyLimit(Router(routes=routes), 10), state)
    transport = httpx.ASGITransport(app=app, raise_app_exceptions=False)
    return httpx.AsyncClient(transport=transport, base_url="http://test")


async def test_an_id_is_made_where_there_is_none() -> None:
    """Every answer has an id, and no two have the same."""
    async with _client(make_state()) as client:
        ids = [(await client.get("/x")).headers["x-request-id"] for _ in range(2)]
    assert all(re.fullmatch("[0-9a-f]{32}", one) for one in ids)
    assert ids[0] != ids[1]


@pytest.mark.parametrize("given", ["a", "req_1-2.3/4", "x" * 128])
async def test_a_sane_id_is_taken_over(given: str) -> None:
    """What the client or a proxy chose comes back."""
    async with _client(make_state()) as client:
        answer = await client.get("/x", headers={"x-request-id": given})
    assert answer.headers["x-request-id"] == given


@pytest.mark.parametrize("given", ["", "x" * 129, "two words", "tab\there", "über".encode()])
async def test_an_insane_id_is_replaced(given: str | bytes) -> None:
    """Too long, or with characters that may break a log or a header."""
    async with _client(make_state()) as client:
        answer = await client.get("/x", headers={"x-request-id": given})
    assert re.fullmatch("[0-9a-f]{32}", answer.headers["x-request-id"])


async def test_a_trace_goes_on() -> None:
    """W3C trace context: echoed, and known to everything that logs."""
    seen = []

    async def endpoint(request: Request) -> Response:
        seen.append((request_id_var.get(), trace_id_var.get()))
        return PlainTextResponse("")

    async with _client(make_state(), endpoint) as client:
        headers = {"traceparent": TRACEPARENT, "x-request-id": "r1"}
        answer = await client.get("/x", headers=headers)
    assert answer.headers["traceparent"] == TRACEPARENT
    assert seen == [("r1", TRACE)]


@pytest.mark.parametrize(
    "given",
    [
        "",
        "garbage",
        f"ff-{TRACE}-b7ad6b7169203331-01",
        f"00-{'0' * 32}-b7ad6b7169203331-01",
        f"00-{TRACE}-{'0' * 16}-01",
        TRACEPARENT.upper(),
        TRACEPARENT + "-more",
    ],
)
async def test_a_broken_trace_is_replaced(given: str) -> None:
    """The specification: an invalid traceparent is as good as none."""
    async with _client(make_state()) as client:
        answer = await client.get("/x", headers={"traceparent": given})
    assert re.fullmatch("00-[0-9a-f]{32}-[0-9a-f]{16}-00", answer.headers["traceparent"])


async def test_what_a_route_raises_becomes_an_answer() -> None:
    """Errors from inside any middleware or route are rendered, with the id to look up."""

    async def endpoint(request: Request) -> Response:
        raise DrainingError("closing", retry_after_seconds=5)

    async with _client(make_state(), endpoint) as client:
        answer = await client.get("/x")
    assert answer.status_code == 503
    assert answer.headers["retry-after"] == "5"
    assert answer.json()["error"]["code"] == "draining"
    assert "x-request-id" in answer.headers


async def test_a_bug_is_a_500_whose_stack_is_in_the_log_only(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """The client gets an envelope and an id; the log gets the traceback."""

    async def endpoint(request: Request) -> Response:
        raise ZeroDivisionError("secret")

    async with _client(make_state(), endpoint) as client:
        answer = await client.get("/x")
    assert answer.status_code == 500
    assert "secret" not in answer.text
    errors = [record for record in caplog.records if record.levelno == logging.ERROR]
    assert [record.exc_info is not None for record in errors] == [True]


async def test_an_error_after_the_first_byte_breaks_the_answer_off() -> None:
    """Too late for a status: the exception goes on to the server, which cuts the connection."""

    async def route(scope: Scope, receive: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"one", "more_body": True})
        raise InvalidRequestError("late")

    sent = []

    async def send(message: Message) -> None:
        sent.append(message)

    with pytest.raises(InvalidRequestError, match="late"):
        await RequestMiddleware(route, make_state())(_scope("GET", "/x"), _no_body, send)
    assert [message.get("more_body") for message in sent] == [None, True]


async def test_answers_are_counted_by_route_and_status() -> None:
    """Clients cannot invent labels: what is no route of ours is `other`."""
    state = make_state()
    async with _client(state, path="/v1/models/{model_id:path}") as client:
        for path in ("/v1/models/a/b", "/v1/models/c", "/wp-admin", "/x.php"):
            await client.get(path)
    text = state.metrics.exposition()[0].decode()
    counted = [line for line in text.splitlines() if line.startswith("tgwui_http_requests_total{")]
    assert counted == [
        'tgwui_http_requests_total{code="200",route="/v1/models/{model_id:path}"} 2.0',
        'tgwui_http_requests_total{code="404",route="other"} 2.0',
    ]


async def test_generation_requests_are_counted_while_they_run_and_at_arrival() -> None:
    """What a drain waits for goes up and down; what autoscalers look at only up; probes neither."""
    state = make_state()
    seen = []

    async def endpoint(request: Request) -> Response:
        seen.append(state.num_active_requests)
        raise ZeroDivisionError

    async with _client(state, endpoint, "/v1/completions") as client:
        await client.post("/v1/completions")
        await client.get("/v1/completions")
    assert seen == [1, 0]
    assert state.num_active_requests == 0
    assert (
        b'tgwui_generation_requests_total{model_name="still"} 1.0'
        in (state.metrics.exposition()[0])
    )


async def test_a_client_that_leaves_before_the_answer_is_a_499() -> None:
    """No answer began: nginx's status for it."""
    state = make_state()

    async def app(scope: Scope, receive: object, send: object) -> None:
        return

    async def send(message: Message) -> None:
        raise AssertionError("nothing is sent")

    await RequestMiddleware(app, state)(_scope("POST", "/v1/completions"), _no_body, send)
    assert b'code="499",route="other"} 1.0' in state.metrics.exposition()[0]


async def test_every_request_leaves_one_line_with_its_facts(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Route, method, status and duration; probes are quieter."""
    with caplog.at_level(logging.INFO, "tgwui_k8s.access"):
        async with _client(make_state(), path="/v1/models") as client:
            await client.get("/v1/models")
        async with _client(make_state(), path="/health/live") as client:
            await client.get("/health/live")
    assert len(caplog.records) == 1
    fields = vars(caplog.records[0])["tgwui_event"]
    assert (fields["route"], fields["method"], fields["status"]) == ("/v1/models", "GET", 200)
    assert fields["duration_s"] >= 0


@pytest.mark.parametrize(
    ("root_path", "path"),
    [
        ("", "/openai/v1/models"),
        ("/llm", "/llm/v1/models"),
        ("/llm/", "/llm/openai/v1/models"),
        ("/llm", "/v1/models"),
        ("/llm", "/openai/v1/models"),
    ],
)
async def test_prefixes_lead_to_the_same_routes(root_path: str, path: str) -> None:
    """KServe's /openai and the proxy's own prefix, stripped by it or not."""
    async with _client(make_state(root_path=root_path), path="/v1/models") as client:
        assert (await client.get(path)).status_code == 200


@pytest.mark.parametrize("path", ["/openai/x", "/openaiv1/models", "/llmx", "//v1/models"])
async def test_what_only_looks_like_a_prefix_is_none(path: str) -> None:
    """No other path reaches the route."""
    async with _client(make_state(root_path="/llm"), path="/v1/models") as client:
        assert (await client.get(path)).status_code == 404


def _limited_client() -> httpx.AsyncClient:
    async def endpoint(request: Request) -> Response:
        return PlainTextResponse(str(len(await request.body())))

    return _client(make_state(), endpoint)


@pytest.mark.parametrize(("size", "status"), [(10, 200), (11, 413)])
async def test_a_declared_body_over_the_cap_is_refused(size: int, status: int) -> None:
    """By its Content-Length, before it is read; the connection is not used again."""
    async with _limited_client() as client:
        answer = await client.post("/x", content=b"x" * size)
    assert answer.status_code == status
    assert (answer.headers.get("connection") == "close") == (status == 413)


@pytest.mark.parametrize(("num_chunks", "status"), [(2, 200), (3, 413)])
async def test_a_streamed_body_over_the_cap_is_refused(num_chunks: int, status: int) -> None:
    """Without a Content-Length, as soon as too much has come."""

    async def chunks() -> AsyncIterator[bytes]:
        for _ in range(num_chunks):
            yield b"x" * 5

    async with _limited_client() as client:
        answer = await client.post("/x", content=chunks())
    assert answer.status_code == status


async def test_browsers_may_call_from_configured_origins_only() -> None:
    """CORS headers stand on errors too, so that a page can read them."""
    state = make_state(cors_origin=("https://good.example",), api_key=("k",))
    transport = httpx.ASGITransport(app=create_app(state))
    async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
        refused = await client.get("/v1/models", headers={"origin": "https://good.example"})
        foreign = await client.get("/v1/models", headers={"origin": "https://bad.example"})
        preflight = await client.options(
            "/v1/completions",
            headers={
                "origin": "https://good.example",
                "access-control-request-method": "POST",
                "access-control-request-headers": "authorization",
            },
        )
    assert refused.status_code == 401
    assert refused.headers["access-control-allow-origin"] == "https://good.example"
    assert "access-control-allow-origin" not in foreign.headers
    assert preflight.status_code == 200


def _scope(method: str, path: str) -> Scope:
    return {
        "type": "http",
        "method": method,
        "path": path,
        "raw_path": path.encode(),
        "root_path": "",
        "query_string": b"",
        "headers": [],
    }


async def _no_body() -> Message:
    await asyncio.Event().wait()
    raise AssertionError("nothing ever comes")
