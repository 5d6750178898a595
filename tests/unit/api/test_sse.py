"""A request that failed leaves nothing behind: a body may be 16 MiB, collections are rare."""

from __future__ import annotations

import asyncio
import gc
import weakref
from contextlib import suppress
from typing import Any

import pytest
from starlette.requests import Request
from starlette.types import Message

from tests.helpers.api_server import make_backend, make_state
from tests.helpers.app_client import app_client
from tgwui_k8s.api.generation import Generation
from tgwui_k8s.api.sse import unless_gone
from tgwui_k8s.errors import EngineUnavailableError


@pytest.mark.parametrize("stream", [True, False])
@pytest.mark.parametrize(
    ("options", "fields"),
    [
        ({}, {}),
        ({}, {"max_tokens": 5000}),
        ({"refusal": EngineUnavailableError}, {}),
        ({"hold_step": 0}, {"timeout_s": 0.1}),
        ({"hold_step": 2}, {"timeout_s": 0.1}),
    ],
)
async def test_a_request_is_gone_without_a_collection(
    options: dict[str, Any], fields: dict[str, Any], stream: bool
) -> None:
    """Whether it was answered, refused, or broke off before its first byte or after it."""
    made = {name: one("gone") if isinstance(one, type) else one for name, one in options.items()}
    async with app_client(make_state(make_backend(**made))) as client:
        gc.collect()
        gc.disable()
        try:
            before = _of_requests()  # of other tests
            await client.post("/v1/completions", json={"prompt": "a", "stream": stream, **fields})
            await asyncio.sleep(0.05)
            for one in made.values():  # The double raises the same error again and again.
                if isinstance(one, Exception):
                    one.__traceback__ = None
            left = [one for one in _of_requests() if not any(one is other for other in before)]
        finally:
            gc.enable()
        assert left == []


def _of_requests() -> list[object]:
    return [one for one in gc.get_objects() if isinstance(one, (Generation, Request))]


async def test_an_error_does_not_hold_the_frames_it_came_from() -> None:
    """And what they hold."""
    kept: list[weakref.ref[Generation]] = []

    async def receive() -> Message:
        await asyncio.Event().wait()
        return {}

    async def fail() -> None:
        raise EngineUnavailableError("gone")

    async def answer() -> None:
        held = Generation.__new__(Generation)
        kept.append(weakref.ref(held))
        await unless_gone(receive, fail())

    gc.disable()
    try:
        with suppress(EngineUnavailableError):
            await answer()
        await asyncio.sleep(0)
        assert kept[0]() is None
    finally:
        gc.enable()
