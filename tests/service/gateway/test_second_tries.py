"""What is tried again, and for how long: streams that have begun, answers that flow through, and
calls that only some engines can serve."""

from __future__ import annotations

import asyncio
import json
from collections import deque
from typing import Any

import httpx
import pytest

from tests.helpers.gateway import events_of, running_gateway, until
from tests.helpers.gateway_scene import BODY, GOOD, PATH, Scene, chunk, scene, stream_of
from tests.helpers.scripted_endpoint import Plan, ScriptedEndpoint, answer
from tgwui_k8s.gateway.breaker import Breaker
from tgwui_k8s.gateway.failures import PhaseTimeoutError

BEGUN = Plan(raw=stream_of(chunk("ab", 0)))
ENDED = Plan(raw=stream_of(chunk("c", 2, finish="stop"), "[DONE]"))
BUSY = Plan(raw=answer(503, b'{"error":{"code":"overloaded"}}'))
STREAMING = {**BODY, "stream": True}


def texts_of(response: httpx.Response) -> list[str]:
    """Of a stream that has come to its end."""
    events = events_of(response.text)
    assert events[-1] == "[DONE]", events
    return [json.loads(event)["choices"][0]["text"] for event in events[:-1]]


def never_tripped(stage: Scene) -> None:
    """Breakers are tested elsewhere."""
    for state in stage.gateway.parts.fleet.states:
        state.breaker = Breaker(num_failures=-1000)


@pytest.mark.parametrize("deed", ["reset", "stall"])
async def test_a_large_answer_that_breaks_off_is_cut(deed: Any) -> None:
    """What the client has cannot be taken back, and nothing may be put behind it: the connection
    ends before the length that was promised, and nobody is asked again."""
    raw = answer(200, b"x" * (3 << 20))
    async with scene(2, endpoint_silent_seconds=60.0) as stage:
        if deed == "stall":
            asyncio.get_running_loop().call_later(0.5, _freeze, stage)
        with pytest.raises(httpx.RemoteProtocolError):
            await stage.post([Plan(2 << 20, deed, raw=raw)])
        await until(lambda: stage.gateway.parts.app.num_calls == 0)
        assert stage.num_attempts == 1


def _freeze(stage: Scene) -> None:
    for state in stage.gateway.parts.fleet.states:
        state.cut_exchanges(PhaseTimeoutError("silent", 60))


async def test_lines_of_json_flow_through_as_they_come() -> None:
    """SageMaker's streams are no events: the first line does not wait for the last, and a stream
    that breaks off ends with its connection."""
    head = (
        b"HTTP/1.1 200 OK\r\ncontent-type: application/jsonlines\r\n"
        b"transfer-encoding: chunked\r\n\r\n"
    )
    line = b'{"token": {"text": "a"}}\n'
    raw = head + b"%x\r\n%b\r\n" % (len(line), line)
    async with scene(2) as stage:
        for endpoint in stage.endpoints:
            endpoint.plans = deque([Plan(raw=raw, deed="stall")])
        url = f"{stage.gateway.url}/invocations"
        async with stage.http.stream("POST", url, json={"inputs": "x", "stream": True}) as stream:
            pieces = stream.aiter_bytes()
            assert await asyncio.wait_for(anext(pieces), 10) == line
            _freeze(stage)
            with pytest.raises(httpx.RemoteProtocolError):
                await anext(pieces)
        assert stage.num_attempts == 1


async def test_a_stream_that_has_begun_waits_for_engines_that_are_full() -> None:
    """Answers that no engine has begun cost it nothing but time: with one engine dead and the other
    busy for a while, it goes on in the end, and has gone on once."""
    async with scene(2, max_continuations=1) as stage:
        never_tripped(stage)
        response = await stage.post([BEGUN, *[BUSY] * 6, ENDED], STREAMING)
        assert texts_of(response) == ["ab", "c"]
        metrics = (await stage.http.get(stage.gateway.url + "/metrics")).text
        assert (
            'continuations_total{model_name="fake/model",reason="connection_lost"} 1.0' in metrics
        )


async def test_a_stream_that_has_begun_does_not_wait_for_ever() -> None:
    """When the queue's time is over, it ends with an error, and the metric that was 0 before says
    so."""
    async with scene(1, queue_timeout=0.3) as stage:
        never_tripped(stage)
        series = 'tgwui_gateway_interrupted_streams_total{model_name="fake/model"} '
        assert series + "0.0" in (await stage.http.get(stage.gateway.url + "/metrics")).text
        response = await stage.post([BEGUN, *[BUSY] * 20], STREAMING)
        error = json.loads(events_of(response.text)[-1])["error"]
        assert error["code"] == "stream_interrupted"
        assert series + "1.0" in (await stage.http.get(stage.gateway.url + "/metrics")).text


async def test_a_stream_that_has_begun_goes_before_newcomers() -> None:
    """Also where the queue is full, and where it has waited long before it began."""
    gate = asyncio.Event()
    async with scene(1, max_endpoint_requests=1, max_queued_requests=1) as stage:
        (engine,) = stage.endpoints
        engine.plans = deque([Plan(raw=BEGUN.raw, gate=gate), ENDED, Plan(raw=GOOD)])
        url, order = stage.gateway.url + PATH, []

        async def ask(body: dict[str, Any]) -> httpx.Response:
            response = await stage.http.post(url, json=body)
            order.append(body is STREAMING)
            return response

        streaming = asyncio.ensure_future(ask(STREAMING))
        await until(lambda: engine.num_open)
        waiting = asyncio.ensure_future(ask({**BODY, "priority": -9}))
        await until(lambda: stage.gateway.parts.num_waiting())
        gate.set()
        assert texts_of(await streaming) == ["ab", "c"]
        assert (await waiting).status_code == 200
        assert order == [True, False]


async def test_a_stream_that_has_begun_gets_the_next_place() -> None:
    """The surviving engine is full and others have waited for it before: other routes, other
    priorities, it does not matter."""
    broken, full = asyncio.Event(), asyncio.Event()
    async with scene(2, max_endpoint_requests=1) as stage:
        never_tripped(stage)
        dying, other = stage.endpoints
        dying.plans = deque([Plan(raw=BEGUN.raw, gate=broken)])
        other.plans = deque([Plan(raw=GOOD, gate=full), ENDED, *[Plan(raw=GOOD)] * 9])
        parts, url, order = stage.gateway.parts, stage.gateway.url, []

        async def ask(name: str, path: str, body: dict[str, Any]) -> httpx.Response:
            response = await stage.http.post(url + path, json=body)
            order.append(name)
            return response

        parts.fleet.state_of(other.url).num_in_flight += 1
        tasks = [asyncio.ensure_future(ask("stream", PATH, STREAMING))]
        await until(lambda: dying.num_open)
        parts.fleet.state_of(other.url).num_in_flight -= 1
        tasks.append(asyncio.ensure_future(ask("busy", PATH, BODY)))
        await until(lambda: other.num_open)
        for path in (PATH, "/v1/chat/completions", "/v1/messages"):
            tasks.append(asyncio.ensure_future(ask(path, path, {**BODY, "priority": -9})))
            number = len(tasks) - 2
            await until(lambda number=number: parts.num_waiting() == {"fake/model": number})
        parts.fleet.state_of(dying.url).is_leaving = True
        broken.set()
        await until(lambda: parts.num_waiting() == {"fake/model": 4})
        full.set()
        answers = await asyncio.gather(*tasks)
        assert texts_of(answers[0]) == ["ab", "c"]
        assert order == ["busy", "stream", PATH, "/v1/chat/completions", "/v1/messages"]


async def test_the_death_of_a_full_engine_is_within_the_budget() -> None:
    """Everything that one engine may have had under way is tried again at once."""
    gate = asyncio.Event()
    async with scene(2, max_endpoint_requests=300, affinity_bound=0.0) as stage:
        never_tripped(stage)
        dying, healthy = stage.endpoints
        dying.plans = deque(Plan(0, "reset", raw=GOOD, gate=gate) for _ in range(1000))
        healthy.plans = deque(Plan(raw=GOOD) for _ in range(1000))
        stage.gateway.parts.fleet.state_of(healthy.url).num_in_flight += 1000
        stage.http = httpx.AsyncClient(timeout=60, limits=httpx.Limits(max_connections=None))
        url = stage.gateway.url + PATH
        tasks = [asyncio.ensure_future(stage.http.post(url, json=BODY)) for _ in range(300)]
        await until(lambda: dying.num_open == 300)
        stage.gateway.parts.fleet.state_of(healthy.url).num_in_flight -= 1000
        stage.gateway.parts.fleet.state_of(dying.url).is_leaving = True
        gate.set()
        assert {(await task).status_code for task in tasks} == {200}
        await stage.http.aclose()


async def test_what_no_engine_of_a_model_serves_is_refused_and_holds_up_nobody() -> None:
    """vLLM has no such route: a 404 at once, and not a queue that everybody else waits in."""
    endpoint = ScriptedEndpoint(plans=deque([Plan(raw=GOOD)]))
    async with (
        endpoint.serve(),
        running_gateway(endpoint.url.replace("http", "vllm+http"), num_ready=0) as gateway,
        httpx.AsyncClient(timeout=20) as http,
    ):
        (state,) = gateway.parts.fleet.states
        state.models = {"fake/model": {}}
        refused = await http.post(f"{gateway.url}/v1/internal/encode", json=BODY)
        assert (refused.status_code, refused.json()["error"]["type"]) == (
            404,
            "invalid_request_error",
        )
        assert "/v1/internal/encode" in refused.json()["error"]["message"]


async def test_calls_wait_only_behind_those_that_the_same_engines_can_serve() -> None:
    """A call for a route of which the only engine is away does not hold up another."""
    own, vllm = ScriptedEndpoint(is_ready=False), ScriptedEndpoint(plans=deque([Plan(raw=GOOD)]))
    async with (
        own.serve(),
        vllm.serve(),
        running_gateway(
            "tgwui+" + own.url, vllm.url.replace("http", "vllm+http"), num_ready=0
        ) as gateway,
        httpx.AsyncClient(timeout=20) as http,
    ):
        for state in gateway.parts.fleet.states:
            state.models = {"fake/model": {}}
            state.is_ready = state.dialect == "vllm"
        waiting = asyncio.ensure_future(http.post(f"{gateway.url}/v1/internal/encode", json=BODY))
        await until(lambda: gateway.parts.num_waiting() == {"fake/model": 1})
        for state in gateway.parts.fleet.states:
            state.is_ready = state.dialect == "vllm"
        assert (await http.post(gateway.url + PATH, json=BODY)).status_code == 200
        assert not waiting.done()
        waiting.cancel()


async def test_an_overloaded_engine_is_no_faulty_one_in_anthropics_words_either() -> None:
    """529 is tried elsewhere, and no breaker hears of it; an engine that drains is left alone."""
    busy = b'{"type":"error","error":{"type":"overloaded_error","message":"x"}}'
    drains = b'{"type":"error","error":{"type":"api_error","message":"x","code":"draining"}}'
    async with scene(2, endpoint_poll_seconds=60.0) as stage:
        for number, (status, body) in enumerate([(529, busy), (503, drains)]):
            plans = deque([Plan(raw=answer(status, body)), Plan(raw=GOOD)])
            for endpoint in stage.endpoints:
                endpoint.plans = plans
            url = f"{stage.gateway.url}/v1/messages"
            response = await stage.http.post(url, json={"model": "fake/model"})
            assert (response.status_code, stage.num_attempts) == (200, 2 * number + 2)
        states = stage.gateway.parts.fleet.states
        assert [state.breaker.num_failures for state in states] == [0, 0]
        assert sorted(state.is_ready for state in states) == [False, True]


async def test_a_fresh_connection_does_not_forget_the_deadline() -> None:
    """A kept connection turns out to be closed; the next one drips on beyond the total."""
    drip = stream_of(*(chunk("a", number) for number in range(1000)))
    async with scene(1, endpoint_poll_seconds=60.0) as stage:
        await stage.post([])
        stage.http.headers["x-gateway-total-timeout"] = "1.5"
        plans = [Plan(0, "close", raw=GOOD), Plan(raw=drip, byte_seconds=0.001)]
        response = await stage.post(plans, STREAMING)
        *events, error = response.text.strip().split("\n\n")
        assert events
        assert json.loads(error.removeprefix("data: "))["error"]["code"] == "deadline_exceeded"
