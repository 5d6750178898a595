"""Calls leave nothing for the garbage collector, which comes by seldom in a gateway."""

from __future__ import annotations

import gc
from collections import deque

import httpx
import pytest

from tests.helpers.gateway import running_gateway, until
from tests.helpers.gateway_scene import BODY, GOOD, PATH, chunk, stream_of
from tests.helpers.scripted_endpoint import Plan, ScriptedEndpoint

STREAM = stream_of(chunk("ab", 0, finish="stop"), "[DONE]")


@pytest.mark.parametrize("is_stream", [False, True])
async def test_a_call_leaves_no_cycles(is_stream: bool) -> None:
    """What a call held is free when it is over, or a busy gateway would need hundreds of megabytes
    until somebody looks."""
    endpoint = ScriptedEndpoint(plans=deque([Plan(raw=STREAM if is_stream else GOOD)] * 40))
    body = {**BODY, "stream": is_stream}
    async with (
        endpoint.serve(),
        running_gateway(endpoint.url) as gateway,
        httpx.AsyncClient(timeout=20) as http,
    ):
        response = await http.post(gateway.url + PATH, json=body)
        gc.collect()
        gc.disable()
        try:
            for _ in range(10):
                assert response.status_code == 200
                response = await http.post(gateway.url + PATH, json=body)
            await until(lambda: gateway.parts.app.num_calls == 0)
            gc.set_debug(gc.DEBUG_SAVEALL)
            gc.collect()
            found = [type(one).__qualname__ for one in gc.garbage if _is_a_calls(one)]
        finally:
            gc.set_debug(0)
            gc.garbage.clear()
            gc.enable()
    assert found == []


def _is_a_calls(one: object) -> bool:
    return type(one).__module__.startswith("tgwui_k8s.gateway.")
