"""The gateway's own side: probes, models, keys, limits, queue, drain, slow and hostile clients."""

from __future__ import annotations

import asyncio
import json
from collections import deque
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.helpers.gateway import chunks_of, events_of, running_gateway, until
from tests.helpers.gateway_scene import BODY, GOOD, PATH, chunk, scene, stream_of
from tests.helpers.scripted_endpoint import Plan, ScriptedEndpoint, answer
from tgwui_k8s.gateway import fleet
from tgwui_k8s.gateway.breaker import FAILURES_TO_OPEN, Breaker
from tgwui_k8s.gateway.http_server import with_cors


def completions(**fields: Any) -> dict[str, Any]:
    """A body."""
    return {**BODY, **fields}


async def test_probes_models_and_metrics_need_no_key() -> None:
    """What Kubernetes, Prometheus and clients ask first."""
    async with scene(2) as stage:
        await stage.post([])
        url = stage.gateway.url
        for path in ("/health", "/health/live", "/health/ready", "/health/startup", "/ping"):
            assert (await stage.http.get(url + path)).status_code == 200
            assert (await stage.http.head(url + path)).content == b""
        models = (await stage.http.get(url + "/v1/models")).json()
        assert [card["id"] for card in models["data"]] == ["fake/model"]
        assert (await stage.http.get(url + "/v1/models/fake/model")).json()["id"] == "fake/model"
        assert (await stage.http.get(url + "/openai/v1/models")).json() == models
        assert (await stage.http.get(url + "/v1/models/nope")).status_code == 404
        metrics = (await stage.http.get(url + "/metrics")).text
        assert 'tgwui_gateway_requests_total{code="200",model_name="fake/model"} 1.0' in metrics
        assert metrics.count("tgwui_gateway_endpoint_ready{") == 2
        assert "tgwui_gateway_requests_in_flight 0.0" in metrics


async def test_answers_are_named() -> None:
    """Request id and trace go through, in both directions, and the endpoint is told."""
    trace = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
    async with scene(1) as stage:
        stage.http.headers.update({"x-request-id": "mine", "traceparent": trace})
        response = await stage.post([])
        assert response.headers["x-request-id"] == "mine"
        assert response.headers["traceparent"] == trace
        assert response.headers["x-gateway-endpoint"] == stage.endpoints[0].url[7:]
        assert float(response.headers["x-gateway-overhead-ms"]) >= 0
        (head,) = stage.endpoints[0].heads
        assert b"x-request-id: mine\r\n" in head
        assert b"traceparent: 00-0af7651916cd43dd8448eb211c80319c-" in head
        assert b"b7ad6b7169203331" not in head  # The gateway's own span is the parent.


async def test_pages_about_endpoints_need_an_admin_key() -> None:
    """They name addresses; an open gateway must not tell everybody."""
    async with scene(1, server={"admin_key": ("secret",)}) as stage:
        url = stage.gateway.url
        for path in ("/gateway", "/gateway/endpoints"):
            assert (await stage.http.get(url + path)).status_code == 401
            wrong = {"authorization": "Bearer wrong"}
            assert (await stage.http.get(url + path, headers=wrong)).status_code == 401
        right = {"authorization": "Bearer secret"}
        listed = (await stage.http.get(url + "/gateway/endpoints", headers=right)).json()
        assert listed["endpoints"][0]["models"] == ["fake/model"]
        page = await stage.http.get(url + "/gateway", headers={"x-api-key": "secret"})
        assert "fake/model" in page.text
    async with scene(1) as stage:
        assert (await stage.http.get(stage.gateway.url + "/gateway")).status_code == 403


async def test_calls_need_a_key_where_keys_are_configured(tmp_path: Path) -> None:
    """From the settings or a file, by either header; endpoints get the gateway's own instead."""
    file = tmp_path / "keys"
    file.write_text("from-file\n")
    server = {"api_key": ("from-settings",), "api_key_file": str(file)}
    async with scene(1, server=server, endpoint_api_key=("own",)) as stage:
        assert (await stage.post([])).status_code == 401
        assert (await stage.http.get(stage.gateway.url + "/v1/models")).status_code == 401
        assert (await stage.http.get(stage.gateway.url + "/metrics")).status_code == 200
        for headers in (
            {"authorization": "Bearer from-settings"},
            {"x-api-key": "from-file"},
        ):
            stage.http.headers = httpx.Headers(headers)
            assert (await stage.post([])).status_code == 200
            head = stage.endpoints[0].heads[-1]
            assert b"authorization: Bearer own\r\n" in head
            assert b"from-" not in head
        denied = await stage.http.get(stage.gateway.url + "/gateway")
        assert denied.status_code == 403


async def test_web_pages_may_call_from_configured_origins() -> None:
    """A browser's preflight."""
    async with scene(1) as stage:
        app = with_cors(stage.gateway.parts.app, ("https://page",))
        async with httpx.AsyncClient(
            transport=httpx.ASGITransport(app), base_url="http://x"
        ) as web:
            headers = {"origin": "https://page", "access-control-request-method": "POST"}
            preflight = await web.options(PATH, headers=headers)
            assert preflight.headers["access-control-allow-origin"] == "https://page"
            other = await web.options(PATH, headers={**headers, "origin": "https://evil"})
            assert "access-control-allow-origin" not in other.headers


async def test_wrong_routes_and_methods_have_the_envelope() -> None:
    """As the engine's API."""
    async with scene(1) as stage:
        unknown = await stage.http.post(stage.gateway.url + "/v1/x")
        assert unknown.status_code == 404
        assert unknown.json()["error"]["message"] == "Invalid URL (POST /v1/x)"
        wrong = await stage.http.get(stage.gateway.url + PATH)
        assert wrong.status_code == 405
        load = await stage.http.post(stage.gateway.url + "/v1/internal/model/load", json={})
        assert load.status_code == 404


async def test_bodies_have_a_largest_size() -> None:
    """Declared or not."""
    async with scene(1, server={"max_body_bytes": 1000}) as stage:
        url = stage.gateway.url + PATH
        declared = await stage.http.post(url, content=b"x" * 1001)
        assert declared.status_code == 413

        async def pieces() -> Any:
            for _ in range(20):
                yield b"x" * 100

        undeclared = await stage.http.post(url, content=pieces())
        assert undeclared.status_code == 413
        assert (await stage.http.post(url, content=b"{")).status_code == 400
        assert stage.num_attempts == 0


HOSTILE = {
    "length and chunks": b"POST /v1/completions HTTP/1.1\r\nhost: x\r\ncontent-length: 4\r\n"
    b"transfer-encoding: chunked\r\n\r\n0\r\n\r\nGET /v1/models HTTP/1.1\r\nhost: x\r\n\r\n",
    "two lengths": b"POST /v1/completions HTTP/1.1\r\nhost: x\r\ncontent-length: 4\r\n"
    b"content-length: 5\r\n\r\n{}  x",
    "a head without end": b"GET / HTTP/1.1\r\n" + b"x-a: " + b"b" * 70_000,
    "many headers": b"GET / HTTP/1.1\r\n" + b"x-a: b\r\n" * 10_000,
    "a line feed in a header": b"GET /health HTTP/1.1\r\nx-a: b\nc\r\n\r\n",
}


@pytest.mark.parametrize("case", HOSTILE)
async def test_hostile_heads_end_the_connection(case: str) -> None:
    """Nothing of them reaches an endpoint, and no second request is read out of the first."""
    async with scene(1) as stage:
        port = int(stage.gateway.url.rpartition(":")[2])
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(HOSTILE[case])
        received = await asyncio.wait_for(reader.read(), 10)
        writer.close()
        assert received.startswith((b"HTTP/1.1 400", b"HTTP/1.1 431")) or received == b""
        assert received.count(b"HTTP/1.1") <= 1
        assert stage.num_attempts == 0


async def test_requests_wait_while_an_engine_starts() -> None:
    """Nobody is there: the request waits, the queue shows it, and it is served when one comes."""
    endpoint = ScriptedEndpoint(is_ready=False, plans=deque([Plan(raw=GOOD)]))
    async with (
        endpoint.serve(),
        running_gateway(endpoint.url, num_ready=0) as gateway,
        httpx.AsyncClient(timeout=20) as http,
    ):
        waiting = asyncio.ensure_future(http.post(gateway.url + PATH, json=BODY))
        await until(lambda: gateway.parts.num_waiting() == {"fake/model": 1})
        metrics = (await http.get(gateway.url + "/metrics")).text
        assert 'tgwui_gateway_queue_size{model_name="fake/model"} 1.0' in metrics
        assert (await http.get(gateway.url + "/health/ready")).status_code == 200
        endpoint.is_ready = True
        assert (await waiting).json()["said"] == "good"
        assert gateway.parts.num_waiting() == {}


async def test_a_model_is_unknown_only_when_everybody_has_had_time_to_say(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A gateway that has just started and heard from one of two engines lets calls for the other's
    model wait; an engine that keeps silent does not make all names possible for ever."""
    quick, slow = ScriptedEndpoint(model="a"), ScriptedEndpoint(model="b", is_frozen=True)
    async with (
        quick.serve(),
        slow.serve(),
        running_gateway(quick.url, slow.url, num_ready=1) as gateway,
        httpx.AsyncClient(timeout=20) as http,
    ):
        monkeypatch.setattr(fleet, "NEW_SECONDS", 0.0)
        refused = await http.post(gateway.url + PATH, json=completions(model="b"))
        assert refused.json()["error"]["code"] == "model_not_found"
        state = gateway.parts.fleet.state_of(slow.url)
        state.models = {"c": {}}  # It has said so, and its other answers are still to come.
        assert gateway.parts.fleet.may_have("c")
        state.models = {}

        monkeypatch.setattr(fleet, "NEW_SECONDS", 1000.0)
        slow.plans = deque([Plan(raw=GOOD)])
        waiting = asyncio.ensure_future(http.post(gateway.url + PATH, json=completions(model="b")))
        await until(lambda: gateway.parts.num_waiting() == {"b": 1})
        slow.is_frozen = False
        assert (await waiting).json()["said"] == "good"


async def test_waiting_has_an_end() -> None:
    """In time; the client is told when to come back."""
    endpoint = ScriptedEndpoint(is_ready=False)
    async with (
        endpoint.serve(),
        running_gateway(endpoint.url, num_ready=0, queue_timeout=0.2) as gateway,
        httpx.AsyncClient(timeout=20) as http,
    ):
        late = await http.post(gateway.url + PATH, json=BODY)
        assert late.status_code == 503
        assert late.json()["error"]["code"] == "model_not_ready"
        assert late.headers["retry-after"] == "5"
        assert gateway.parts.num_waiting() == {}


async def test_a_full_queue_takes_no_more() -> None:
    """Who comes then is told when to come back."""
    endpoint = ScriptedEndpoint(is_ready=False)
    async with (
        endpoint.serve(),
        running_gateway(endpoint.url, num_ready=0, max_queued_requests=1) as gateway,
        httpx.AsyncClient(timeout=20) as http,
    ):
        first = asyncio.ensure_future(http.post(gateway.url + PATH, json=BODY))
        await until(lambda: gateway.parts.num_waiting())
        second = await http.post(gateway.url + PATH, json=BODY)
        assert second.status_code == 503
        assert second.json()["error"]["code"] == "overloaded"
        assert second.headers["retry-after"] == "5"
        endpoint.plans = deque([Plan(raw=GOOD)])
        endpoint.is_ready = True
        assert (await first).status_code == 200


async def test_an_endpoint_gets_no_more_than_it_may_have() -> None:
    """The rest waits for a place, lower priority numbers first."""
    async with scene(1, max_endpoint_requests=1) as stage:
        gate = asyncio.Event()
        order: list[int] = []

        async def ask(number: int, **fields: Any) -> None:
            response = await stage.http.post(stage.gateway.url + PATH, json=completions(**fields))
            assert response.status_code == 200
            order.append(number)

        stage.endpoints[0].plans = deque([Plan(raw=GOOD, gate=gate)] * 4)
        tasks = [asyncio.ensure_future(ask(0))]
        await until(lambda: stage.endpoints[0].num_open)
        for number, priority in ((1, 5), (2, 0), (3, -1)):
            tasks.append(asyncio.ensure_future(ask(number, priority=priority)))
            await until(
                lambda number=number: sum(stage.gateway.parts.num_waiting().values()) == number
            )
        gate.set()
        await asyncio.gather(*tasks)
        assert order == [0, 3, 2, 1]


async def test_a_client_that_leaves_the_queue_leaves_nothing() -> None:
    """Its place is free for the next."""
    endpoint = ScriptedEndpoint(is_ready=False)
    async with (
        endpoint.serve(),
        running_gateway(endpoint.url, num_ready=0) as gateway,
        httpx.AsyncClient(timeout=20) as http,
    ):
        task = asyncio.ensure_future(http.post(gateway.url + PATH, json=BODY))
        await until(lambda: gateway.parts.num_waiting())
        task.cancel()
        await until(lambda: gateway.parts.num_waiting() == {})
        await until(lambda: gateway.parts.app.num_calls == 0)


async def test_without_a_name_the_only_model_is_meant() -> None:
    """With two of them, the client has to say."""
    async with scene(1) as stage:
        assert (await stage.post([], {"prompt": "x"})).status_code == 200
    one, other = ScriptedEndpoint(model="a"), ScriptedEndpoint(model="b")
    async with (
        one.serve(),
        other.serve(),
        running_gateway(one.url, other.url) as gateway,
        httpx.AsyncClient() as http,
    ):
        response = await http.post(gateway.url + PATH, json={"prompt": "x"})
        assert response.status_code == 400
        assert response.json()["error"]["param"] == "model"


async def test_a_slow_reader_costs_bounded_memory_and_is_cut_off() -> None:
    """The endpoint is slowed down, not buffered; a reader that stops altogether is given up."""
    padding = "x" * 4000
    events = [chunk("a", number)[:-1] + f', "padding": "{padding}"}}' for number in range(4000)]
    async with scene(1, client_stall_seconds=0.5) as stage:
        stage.endpoints[0].plans = deque([Plan(raw=stream_of(*events))])
        port = int(stage.gateway.url.rpartition(":")[2])
        reader, writer = await asyncio.open_connection("127.0.0.1", port, limit=1024)
        body = json.dumps(completions(stream=True)).encode()
        head = f"POST {PATH} HTTP/1.1\r\nhost: x\r\ncontent-length: {len(body)}\r\n\r\n".encode()
        writer.write(head + body)
        await reader.read(100)
        writer.transport.pause_reading()  # type: ignore[attr-defined]
        await until(lambda: stage.gateway.parts.app.num_calls == 1)
        exchanges = next(iter(stage.gateway.parts.fleet.states)).exchanges
        most = 0

        def is_over() -> bool:
            nonlocal most
            most = max(most, *(exchange._buffered for exchange in exchanges), 0, 0)
            return stage.gateway.parts.app.num_calls == 0

        await until(is_over)
        assert most < 600_000
        await until(lambda: stage.endpoints[0].num_open == 0)
        await until(lambda: not stage.gateway.server.server_state.connections)
        writer.close()


async def test_a_reader_that_pauses_gets_everything() -> None:
    """The endpoint waits meanwhile; afterwards the stream flows on, with nothing lost or twice."""
    text = "".join(f"{number:09} " for number in range(400_000))
    places = range(0, len(text), 8000)
    events = [chunk(text[place : place + 8000], place) for place in places]
    end = chunk("", len(text), finish="stop")
    async with scene(1) as stage:
        raw = stream_of(
            *(f'{{"padding": "{"y" * 8000}", {one[1:]}' for one in events), end, "[DONE]"
        )
        stage.endpoints[0].plans = deque([Plan(raw=raw)])
        url, body = stage.gateway.url + PATH, completions(stream=True)
        async with stage.http.stream("POST", url, json=body) as response:
            exchanges = next(iter(stage.gateway.parts.fleet.states)).exchanges
            await until(lambda: any(exchange._buffered > 256 * 1024 for exchange in exchanges))
            said = (await response.aread()).decode()
        assert "".join(one["choices"][0]["text"] for one in chunks_of(said)) == text


async def test_a_drain_lets_streams_finish_and_takes_nothing_new() -> None:
    """Ready turns to 503, new calls are refused, the one under way comes to its end."""
    async with scene(1) as stage:
        raw = stream_of(chunk("ab", 0), chunk("cd", 2, finish="stop"), "[DONE]")
        stage.endpoints[0].plans = deque([Plan(raw=raw, byte_seconds=0.001)])
        url = stage.gateway.url
        streaming = asyncio.ensure_future(
            stage.http.post(url + PATH, json=completions(stream=True))
        )
        await until(lambda: stage.gateway.parts.app.num_calls == 1)
        stage.gateway.parts.app.is_draining = True
        assert (await stage.http.get(url + "/health/ready")).status_code == 503
        refused = await stage.http.post(url + PATH, json=BODY)
        assert (refused.status_code, refused.json()["error"]["code"]) == (503, "draining")
        assert refused.headers["connection"] == "close"
        assert events_of((await streaming).text)[-1] == "[DONE]"


async def test_when_the_drain_is_over_streams_end_with_an_error() -> None:
    """No `[DONE]`: a gateway in front goes on with them."""
    async with scene(1) as stage:
        raw = answer(
            200, f"data: {chunk('ab', 0)}\n\n".encode(), content_type=b"text/event-stream"
        ).replace(b"content-length: ", b"content-length: 9")
        stage.endpoints[0].plans = deque([Plan(raw=raw, deed="stall")])
        body = completions(stream=True)
        async with stage.http.stream("POST", stage.gateway.url + PATH, json=body) as stream:
            lines = stream.aiter_lines()
            first = await anext(lines)
            stage.gateway.parts.app.end_calls()
            text = "\n".join([first, *[line async for line in lines]])
        assert json.loads(events_of(text + "\n")[-1])["error"]["code"] == "draining"
        await until(lambda: stage.gateway.parts.app.num_calls == 0)


async def test_many_calls_leave_nothing_behind() -> None:
    """After good ones, failing ones and clients that left: all gauges are at zero."""
    async with scene(3) as stage:
        plans: deque[Plan] = deque()
        for number in range(90):
            plans.append(
                (Plan(raw=GOOD), Plan(0, "reset", raw=GOOD), Plan(9, "close", raw=GOOD))[number % 3]
            )
        plans.extend(Plan(raw=GOOD) for _ in range(200))
        for endpoint in stage.endpoints:
            endpoint.plans = plans

        async def ask(number: int) -> int:
            post = stage.http.post(stage.gateway.url + PATH, json=completions(prompt=str(number)))
            if number % 10 == 0:
                with pytest.raises(asyncio.TimeoutError):
                    await asyncio.wait_for(post, 0.001)
                return 200
            return (await post).status_code

        assert set(await asyncio.gather(*(ask(number) for number in range(60)))) == {200}
        parts = stage.gateway.parts
        await until(lambda: parts.app.num_calls == 0)
        assert [state.num_in_flight for state in parts.fleet.states] == [0, 0, 0]
        assert [state.exchanges for state in parts.fleet.states] == [set()] * 3
        assert not parts.admission._num_in_flight
        assert parts.num_waiting() == {}


async def test_gateways_behind_gateways_continue_streams_once() -> None:
    """The inner gateway goes on with a stream, and the outer one does not notice."""
    whole = [chunk("ab", 0), chunk("cd", 2, finish="stop"), "[DONE]"]
    async with scene(2) as inner:
        first = stream_of(whole[0])
        for endpoint in inner.endpoints:
            endpoint.plans = deque()
        shared = deque([Plan(raw=first), Plan(raw=stream_of(*whole[1:]))])
        for endpoint in inner.endpoints:
            endpoint.plans = shared
        async with running_gateway(inner.gateway.url) as outer:
            response = await inner.http.post(
                outer.url + PATH, json=completions(stream=True, return_token_ids=True)
            )
            chunks = [json.loads(event)["choices"][0] for event in events_of(response.text)[:-1]]
            assert [one["text"] for one in chunks] == ["ab", "cd"]
            assert [one["token_ids"] for one in chunks] == [[0, 1], [2, 3]]
            assert response.headers["x-gateway-endpoint"] == inner.gateway.url[7:]


async def test_an_outer_gateway_goes_on_where_an_inner_one_gives_up() -> None:
    """The inner gateway's error event is a break like any other."""
    async with scene(1, max_continuations=0) as one, scene(1) as other:
        one.endpoints[0].plans = deque([Plan(raw=stream_of(chunk("ab", 0)))])
        other.endpoints[0].plans = deque(
            [Plan(raw=stream_of(chunk("cd", 2, finish="stop"), "[DONE]"))]
        )
        async with running_gateway(one.gateway.url, other.gateway.url) as outer:
            # Whichever is asked first must be the one that breaks.
            other_state = outer.parts.fleet.state_of(other.gateway.url)
            other_state.num_in_flight += 100
            response = await one.http.post(outer.url + PATH, json=completions(stream=True))
            other_state.num_in_flight -= 100
            events = events_of(response.text)
            texts = [json.loads(event)["choices"][0]["text"] for event in events[:-1]]
            assert (texts, events[-1]) == (["ab", "cd"], "[DONE]")


async def test_tokens_are_counted_for_all_kinds_of_answers() -> None:
    """From the usage of an answer, and from the journal of a stream that has none."""
    usage = b'{"choices":[],"usage":{"prompt_tokens":5,"completion_tokens":7}}'
    anthropic = b'event: x\ndata: {"type":"x","usage":{"input_tokens":1,"output_tokens":2}}\n\n'
    plain = answer(200, anthropic, content_type=b"text/event-stream")
    async with scene(1) as stage:
        await stage.post([Plan(raw=answer(200, usage))])
        stream = stream_of(chunk("abc", 0, finish="stop"), "[DONE]")
        await stage.post([Plan(raw=stream)], completions(stream=True))
        stage.endpoints[0].plans = deque([Plan(raw=plain)])
        response = await stage.http.post(
            f"{stage.gateway.url}/v1/messages", json={"model": "fake/model", "stream": True}
        )
        assert response.content == anthropic
        metrics = (await stage.http.get(stage.gateway.url + "/metrics")).text
        assert 'tgwui_gateway_prompt_tokens_total{model_name="fake/model"} 6.0' in metrics
        assert 'tgwui_gateway_generation_tokens_total{model_name="fake/model"} 12.0' in metrics


async def test_a_stream_that_waits_for_another_endpoint_shows_that_it_lives() -> None:
    """The only engine breaks off and is left alone for a second: comments, and then the rest. A
    client that leaves meanwhile leaves nothing behind."""
    first = Plan(raw=stream_of(chunk("ab", 0)))
    rest = Plan(raw=stream_of(chunk("cd", 2, finish="stop"), "[DONE]"))
    async with scene(1, server={"sse_keep_alive_seconds": 0.05}) as stage:
        (endpoint,), (state,) = stage.endpoints, stage.gateway.parts.fleet.states

        async def ask() -> httpx.Response:
            endpoint.plans = deque([first, rest])
            state.breaker = Breaker(num_failures=FAILURES_TO_OPEN - 1, open_seconds=1.0)
            return await stage.http.post(stage.gateway.url + PATH, json=completions(stream=True))

        response = await ask()
        assert response.text.count(": keep-alive") > 1
        events = events_of(response.text)
        texts = [json.loads(event)["choices"][0]["text"] for event in events[:-1]]
        assert texts == ["ab", "cd"]

        leaving = asyncio.ensure_future(ask())
        await until(lambda: stage.gateway.parts.num_waiting())
        leaving.cancel()
        await until(lambda: stage.gateway.parts.app.num_calls == 0)
        assert stage.gateway.parts.num_waiting() == {}
        assert state.num_in_flight == 0
