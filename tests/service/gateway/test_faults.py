"""What the client gets when an endpoint misbehaves, case by case, over real sockets."""

from __future__ import annotations

import asyncio
import json
import socket
from collections import deque

import pytest

from tests.helpers.gateway import events_of, until
from tests.helpers.gateway_scene import BODY, GOOD, PATH, Scene, chunk, scene, stream_of
from tests.helpers.scripted_endpoint import Plan, answer
from tgwui_k8s.gateway.breaker import Breaker
from tgwui_k8s.gateway.failures import PhaseTimeoutError

RETRIED = {
    "reset before the first byte": Plan(0, "reset", raw=GOOD),
    "closed before the first byte": Plan(0, "close", raw=GOOD),
    "silent before the first byte": Plan(0, "stall", raw=GOOD),
    "reset within the head": Plan(20, "reset", raw=GOOD),
    "reset within the body": Plan(len(GOOD) - 5, "reset", raw=GOOD),
    "stalled within the body": Plan(len(GOOD) - 5, "stall", raw=GOOD),
    "not HTTP": Plan(raw=b"SSH-2.0-OpenSSH_9.2\r\n"),
    "two lengths": Plan(
        raw=b"HTTP/1.1 200 OK\r\ncontent-length: 3\r\ncontent-length: 5\r\n\r\nabcde"
    ),
    "length and chunks": Plan(
        raw=b"HTTP/1.1 200 OK\r\ncontent-length: 3\r\ntransfer-encoding: chunked\r\n\r\n1\r\na\r\n"
    ),
    "a chunk with no size": Plan(
        raw=b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\nzz\r\na\r\n"
    ),
    "a head without end": Plan(raw=b"HTTP/1.1 200 OK\r\n" + b"x-a: %s\r\n" % (b"b" * 1000) * 100),
    "switching protocols": Plan(raw=b"HTTP/1.1 101 Switching Protocols\r\n\r\n"),
    "too many requests": Plan(raw=answer(429, b"{}")),
    "bad gateway": Plan(raw=answer(502, b"{}")),
    "overloaded": Plan(raw=answer(503, b"{}", b"retry-after: 1")),
    "gateway timeout": Plan(raw=answer(504, b"{}")),
    "a server error": Plan(raw=answer(500, b"{}")),
    "a model that it has lost": Plan(raw=answer(404, b'{"error":{"code":"model_not_found"}}')),
}


@pytest.mark.parametrize("case", RETRIED)
async def test_another_endpoint_answers_instead(case: str) -> None:
    """Whatever goes wrong before the client has a byte, it never sees."""
    async with scene(endpoint_silent_seconds=60.0) as stage:
        if RETRIED[case].deed == "stall":
            # Without a stream only silence of the whole endpoint, or the total, ends the wait.
            asyncio.get_running_loop().call_later(0.3, _freeze, stage)
        plan = RETRIED[case]
        # Where nothing at all comes on a kept connection, the same endpoint gets a second chance.
        plans = [plan, plan] if plan.num_bytes == 0 and plan.deed != "stall" else [plan]
        response = await stage.post(plans)

        assert response.status_code == 200
        assert response.json()["said"] == "good"
        assert stage.num_attempts == len(plans) + 1
        (failed,) = [s for s in stage.gateway.parts.fleet.states if s.num_failures]
        assert response.headers["x-gateway-endpoint"] != failed.name


def _freeze(stage: Scene) -> None:
    """What the monitor does when an endpoint has been silent for too long."""
    for state in stage.gateway.parts.fleet.states:
        state.cut_exchanges(PhaseTimeoutError("silent", 60))


PASSED_ON = {
    "a bad request": answer(400, b'{"error":{"message":"no"}}'),
    "not found": answer(404, b'{"error":{"message":"no"}}'),
    "an error that would come again": answer(
        500, b'{"error":{"message":"no"}}', b"x-should-retry: false"
    ),
}


@pytest.mark.parametrize("case", PASSED_ON)
async def test_the_requests_own_fault_is_passed_on(case: str) -> None:
    """One attempt, and the endpoint's own words."""
    async with scene() as stage:
        response = await stage.post([Plan(raw=PASSED_ON[case])])

        assert response.json() == {"error": {"message": "no"}}
        assert stage.num_attempts == 1


async def test_when_all_are_overloaded_the_client_is_told_when_to_come_back() -> None:
    """After the retries the last answer is passed on, its Retry-After included."""
    busy = Plan(raw=answer(503, b'{"error":{"code":"overloaded"}}', b"retry-after: 7"))
    async with scene(max_retries=1) as stage:
        response = await stage.post([busy] * 5)

        assert response.status_code == 503
        assert response.headers["retry-after"] == "7"
        assert response.json()["error"]["code"] == "overloaded"
        assert stage.num_attempts == 2


async def test_a_dead_endpoint_is_left_alone_after_a_few_failures() -> None:
    """Its breaker opens: later requests do not even try."""
    async with scene(2, endpoint_poll_seconds=60.0, affinity_bound=0.0) as stage:
        first, second = stage.gateway.parts.fleet.states
        first.breaker = Breaker(open_seconds=1000.0)
        for _ in range(3):
            first.breaker.fail(asyncio.get_running_loop().time())
        for _ in range(6):
            response = await stage.post([])
            assert response.headers["x-gateway-endpoint"] == second.name


async def test_refused_connections_are_no_reason_to_fail() -> None:
    """An endpoint whose port is closed is stepped over, as long as there is another."""
    async with scene(2, endpoint_poll_seconds=60.0) as stage:
        with socket.create_server(("127.0.0.1", 0)) as closed:
            port = closed.getsockname()[1]
        state = next(iter(stage.gateway.parts.fleet.states))
        object.__setattr__(state.endpoint.origin, "port", port)
        for prompt in "abcdefgh":
            response = await stage.post([], {**BODY, "prompt": prompt})
            assert response.status_code == 200


async def test_a_model_nobody_serves_is_a_404() -> None:
    """In OpenAI's envelope, at once."""
    async with scene(1) as stage:
        response = await stage.post([], {"prompt": "x", "model": "nope"})

        assert response.status_code == 404
        assert response.json()["error"]["code"] == "model_not_found"
        assert stage.num_attempts == 0


async def test_an_error_event_that_comes_first_is_tried_again() -> None:
    """An engine that fails before its first chunk has given the client nothing yet."""
    failing = stream_of('{"error": {"message": "x", "code": "engine_unavailable"}}')
    good = stream_of(chunk("ab", 0, finish="stop"), "[DONE]")
    async with scene() as stage:
        response = await stage.post([Plan(raw=failing), Plan(raw=good)], {**BODY, "stream": True})

        assert json.loads(events_of(response.text)[0])["choices"][0]["text"] == "ab"
        assert stage.num_attempts == 2


@pytest.mark.parametrize("is_stream", [False, True])
async def test_the_only_engine_may_take_its_time_to_start_again(is_stream: bool) -> None:
    """Its process died: it is not asked again before it is ready, which spares tries."""
    error = '{"error": {"message": "x", "code": "engine_unavailable"}}'
    begun, ended = chunk("ab", 0), chunk("c", 2, finish="stop")
    gate = asyncio.Event()
    if is_stream:
        plans = [Plan(raw=stream_of(begun, error), gate=gate), Plan(raw=stream_of(ended, "[DONE]"))]
    else:
        plans = [Plan(raw=answer(503, error.encode()), gate=gate)]
    async with scene(1) as stage:
        (engine,) = stage.endpoints
        posting = asyncio.create_task(stage.post(plans, {**BODY, "stream": is_stream}))
        await until(lambda: engine.requests)
        engine.is_ready = False
        gate.set()
        await asyncio.sleep(0.5)
        assert (posting.done(), stage.num_attempts) == (False, 1)
        engine.is_ready = True
        response = await posting

        assert response.status_code == 200
        assert stage.num_attempts == 2
        if is_stream:
            assert events_of(response.text)[-1] == "[DONE]"


async def test_an_error_event_of_the_requests_own_ends_the_stream() -> None:
    """A deadline is not met elsewhere: the event is passed on, and nothing comes after it."""
    late = '{"error": {"message": "late", "code": "deadline_exceeded"}}'
    async with scene() as stage:
        plan = Plan(raw=stream_of(chunk("ab", 0), late))
        response = await stage.post([plan], {**BODY, "stream": True})

        events = events_of(response.text)
        assert len(events) == 2
        assert json.loads(events[1])["error"]["code"] == "deadline_exceeded"
        assert stage.num_attempts == 1


async def test_a_slow_drip_is_a_stream_like_any_other() -> None:
    """Byte by byte, events come out whole."""
    raw = stream_of(chunk("größer", 0), chunk("ab", 6, finish="stop"), "[DONE]")
    async with scene(1) as stage:
        plan = Plan(raw=raw, byte_seconds=0.0005)
        response = await stage.post([plan], {**BODY, "stream": True})

        texts = [json.loads(e)["choices"][0]["text"] for e in events_of(response.text)[:-1]]
        assert texts == ["größer", "ab"]


async def test_an_event_without_end_is_broken_framing() -> None:
    """Eight mebibytes without an empty line: the endpoint is left."""
    raw = answer(200, b"data: " + b"x" * (9 << 20), content_type=b"text/event-stream")
    good = stream_of(chunk("ab", 0, finish="stop"), "[DONE]")
    async with scene() as stage:
        response = await stage.post([Plan(raw=raw), Plan(raw=good)], {**BODY, "stream": True})

        assert events_of(response.text)[-1] == "[DONE]"
        assert stage.num_attempts == 2


async def test_comments_do_not_keep_a_hanging_engine_alive() -> None:
    """Keep-alives show that a connection lives; they reach the client, and the time between chunks
    runs on: half a minute of them does not help."""
    head = (
        b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"
    )
    first = f"data: {chunk('ab', 0)}\n\n".encode()
    drip = b"b\r\n: comment\n\n\r\n" * 2000
    rest = stream_of(chunk("cd", 2, finish="stop"), "[DONE]")
    async with scene(between_chunks_timeout=0.5) as stage:
        raw = head + b"%x\r\n%b\r\n" % (len(first), first) + drip
        stage.http.headers["x-gateway-between-chunks-timeout"] = "0.5"
        response = await stage.post(
            [Plan(raw=raw, byte_seconds=0.001), Plan(raw=rest)], {**BODY, "stream": True}
        )

        texts = [json.loads(e)["choices"][0]["text"] for e in events_of(response.text)[:-1]]
        assert texts == ["ab", "cd"]
        assert 0 < response.text.count(": comment") < 200
        assert stage.num_attempts == 2
        resumed = [
            r for endpoint in stage.endpoints for r in endpoint.requests if "resume_token_ids" in r
        ]
        assert resumed[0]["resume_token_ids"] == [[0, 1]]
        assert resumed[0]["resume_text_lengths"] == [2]


async def test_streams_of_routes_that_cannot_continue_end_with_an_error_event() -> None:
    """Anthropic's events have no token ids: the client is told, in Anthropic's words."""
    raw = answer(
        200, b'event: ping\ndata: {"type": "ping"}\n\nevent: x', content_type=b"text/event-stream"
    )
    async with scene() as stage:
        for endpoint in stage.endpoints:
            endpoint.plans = deque([Plan(len(raw) - 3, "reset", raw=raw)])
        response = await stage.http.post(
            f"{stage.gateway.url}/v1/messages", json={"model": "fake/model", "stream": True}
        )

        blocks = response.text.strip().split("\n\n")
        assert blocks[0] == 'event: ping\ndata: {"type": "ping"}'
        assert blocks[1].startswith("event: error\ndata: ")
        assert json.loads(blocks[1].partition("data: ")[2])["type"] == "error"
        assert len(blocks) == 2


async def test_a_client_that_leaves_stops_its_endpoint() -> None:
    """The exchange is cut within a chunk; nothing stays in flight."""
    async with scene(1) as stage:
        raw = answer(
            200, f"data: {chunk('ab', 0)}\n\n".encode(), content_type=b"text/event-stream"
        ).replace(b"content-length: ", b"content-length: 9")
        stage.endpoints[0].plans = deque([Plan(raw=raw, deed="stall")])
        async with stage.http.stream(
            "POST", stage.gateway.url + PATH, json={**BODY, "stream": True}
        ) as response:
            async for line in response.aiter_lines():
                if line.startswith("data:"):
                    break
            assert stage.endpoints[0].num_open == 1
        await until(lambda: stage.endpoints[0].num_open == 0)
        state = next(iter(stage.gateway.parts.fleet.states))
        await until(lambda: state.num_in_flight == 0)
        assert state.exchanges == set()
        assert stage.gateway.parts.app.num_calls == 0
        assert not state.breaker.num_failures


async def test_a_kept_connection_that_was_closed_meanwhile_is_nobodys_failure() -> None:
    """The request goes out again on a new connection, to the same endpoint."""
    async with scene(1, endpoint_poll_seconds=60.0) as stage:
        await stage.post([])
        for _ in range(3):
            # The next answer on the kept connection is none.
            response = await stage.post([Plan(0, "close", raw=GOOD)])
            assert response.status_code == 200
        state = next(iter(stage.gateway.parts.fleet.states))
        assert state.num_failures == 0


async def test_an_answer_that_nobody_asked_for_reaches_nobody() -> None:
    """Two answers to one request: the second ends the connection, and the next request gets its
    own answer, on a new one."""
    evil = answer(200, b'{"said":"evil"}')
    async with scene(1, endpoint_poll_seconds=60.0) as stage:
        client = stage.gateway.parts._client
        for raw in (GOOD + evil, GOOD + evil[:20]):
            response = await stage.post([Plan(raw=raw)])
            assert response.json()["said"] == "good"
            await until(lambda: client.num_connections == 0)
            assert (await stage.post([])).json()["said"] == "good"
        state = next(iter(stage.gateway.parts.fleet.states))
        assert state.num_failures == 0
