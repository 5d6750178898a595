"""Calls leave nothing for the garbage collector, which comes by seldom in a gateway."""

from __future__ import annotations

import asyncio
import gc
import socket
from collections import Counter, deque
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

import pytest

from tests.helpers.gateway import running_gateway, until
from tests.helpers.gateway_scene import BODY, GOOD, PATH, Scene, chunk, scene, stream_of
from tests.helpers.scripted_endpoint import Plan, ScriptedEndpoint, answer
from tgwui_k8s.gateway.breaker import Breaker

STREAM = stream_of(chunk("ab", 0, finish="stop"), "[DONE]")
UNENDED = answer(
    200, f"data: {chunk('ab', 0)}\n\n".encode(), content_type=b"text/event-stream"
).replace(b"content-length: ", b"content-length: 9")
STREAMING = {**BODY, "stream": True}


async def _post(stage: Scene, *plans: Plan, body: dict[str, Any] = BODY) -> None:
    await stage.post(list(plans), body)


async def _leave(stage: Scene) -> None:
    stage.endpoints[0].plans = deque([Plan(raw=UNENDED, deed="stall")])
    url = stage.gateway.url + PATH
    async with stage.http.stream("POST", url, json=STREAMING) as response:
        await anext(response.aiter_bytes())


async def _break_off_an_upload(stage: Scene) -> None:
    port = int(stage.gateway.url.rpartition(":")[2])
    _, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(b"POST %b HTTP/1.1\r\nhost: x\r\ncontent-length: 99\r\n\r\n{" % PATH.encode())
    await until(lambda: stage.gateway.parts.app.num_calls == 0)
    await asyncio.sleep(0.02)
    writer.close()


async def _wait_in_vain(stage: Scene) -> None:
    (state,) = stage.gateway.parts.fleet.states
    state.num_in_flight += 1000
    hurry = {"x-gateway-total-timeout": "0.1"}
    response = await stage.http.post(stage.gateway.url + PATH, json=BODY, headers=hurry)
    assert response.status_code == 503
    state.num_in_flight -= 1000


async def _be_refused_once(stage: Scene) -> None:
    stage.endpoints[0].plans = deque([Plan(raw=GOOD)] * 3)
    (state,) = stage.gateway.parts.fleet.states
    origin, port = state.endpoint.origin, state.endpoint.origin.port
    stage.gateway.parts._client.forget(origin)
    with socket.create_server(("127.0.0.1", 0)) as closed:
        object.__setattr__(origin, "port", closed.getsockname()[1])
    posting = asyncio.ensure_future(stage.http.post(stage.gateway.url + PATH, json=BODY))
    await until(lambda: state.num_failures)
    state.num_failures = 0
    object.__setattr__(origin, "port", port)
    assert (await posting).status_code == 200


CALLS: dict[str, Callable[[Scene], Awaitable[None]]] = {
    "an answer": lambda stage: _post(stage, Plan(raw=GOOD)),
    "a stream": lambda stage: _post(stage, Plan(raw=STREAM), body=STREAMING),
    "a bad request": lambda stage: _post(stage, Plan(raw=answer(400, b"{}"))),
    "a second try": lambda stage: _post(stage, Plan(raw=answer(503, b"{}")), Plan(raw=GOOD)),
    "a kept connection that was closed": lambda stage: _post(stage, Plan(0, "close", raw=GOOD)),
    "a broken stream": lambda stage: _post(
        stage, Plan(raw=stream_of(chunk("ab", 0))), Plan(raw=stream_of(chunk("c", 2), "[DONE]")),
        body=STREAMING,
    ),
    "a client that leaves": _leave,
    "an upload that breaks off": _break_off_an_upload,
    "a queue's end": _wait_in_vain,
    "a refused connection": _be_refused_once,
}  # fmt: skip


@pytest.mark.parametrize("case", CALLS)
async def test_a_call_leaves_no_cycles(case: str) -> None:
    """What a call held is free when it is over, or a busy gateway would need hundreds of megabytes
    until somebody looks."""
    call = CALLS[case]
    async with scene(1, endpoint_poll_seconds=60.0) as stage:
        (state,) = stage.gateway.parts.fleet.states
        state.breaker = Breaker(num_failures=-1000)
        await call(stage)
        await until(lambda: stage.gateway.parts.app.num_calls == 0)
        with garbage() as found:
            for _ in range(5):
                await call(stage)
                await until(lambda: stage.gateway.parts.app.num_calls == 0)
            await asyncio.sleep(0.05)
    assert Counter(found) == Counter()


async def test_polls_of_an_endpoint_that_is_gone_leave_no_cycles() -> None:
    """A dead pod may stay in the list for long."""
    endpoint = ScriptedEndpoint()
    async with endpoint.serve(), running_gateway(endpoint.url) as gateway:
        (state,) = gateway.parts.fleet.states
        endpoint.is_frozen = True
        await until(lambda: not state.is_ready)
        with garbage() as found:
            gateway.parts._client.forget(state.endpoint.origin)
            await asyncio.sleep(1.5)
    assert found == []


@contextmanager
def garbage() -> Iterator[list[str]]:
    """The types of the gateway's objects, and the frames of its functions, that only a collection
    would free, once the context is over."""
    found: list[str] = []
    gc.collect()
    gc.disable()
    try:
        yield found
        gc.set_debug(gc.DEBUG_SAVEALL)
        gc.collect()
        found += [name for one in gc.garbage if "tgwui_k8s/gateway" in (name := _origin(one))]
    finally:
        gc.set_debug(0)
        gc.garbage.clear()
        gc.enable()


def _origin(one: object) -> str:
    """`FILE: NAME` for frames, as `MODULE` with slashes for others."""
    if isinstance(one, FrameType):
        return f"{one.f_code.co_filename}: {one.f_code.co_name}"
    module, kind = type(one).__module__.replace(".", "/"), type(one).__qualname__
    return f"{module}: {kind}"
