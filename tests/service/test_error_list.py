"""The last errors over HTTP: answers and streams that failed, whoever refused them."""

from __future__ import annotations

import socket
from typing import Any

import httpx
import pytest

from tests.helpers.api_server import make_backend, serving, wait_until
from tests.helpers.app_client import app_client
from tests.helpers.still_backend import make_state
from tgwui_k8s.api.state import ServerState
from tgwui_k8s.observability.log import line_of

SECRET = "a-secret-of-the-client"


async def errors(client: httpx.AsyncClient, **options: Any) -> list[dict[str, Any]]:
    """What the route says, without its times."""
    answer = await client.get("/v1/internal/errors", **options)
    assert answer.status_code == 200
    assert SECRET not in answer.text
    seen: list[dict[str, Any]] = answer.json()["errors"]
    assert all(1.7e9 < one.pop("first_seen") <= one.pop("last_seen") for one in seen)
    return seen


async def test_refusals_are_listed_without_what_the_client_wrote() -> None:
    """The newest first; probes are not news."""
    async with app_client(make_state()) as client:
        assert await errors(client) == []
        await client.get("/health/ready")
        await client.get(f"/{SECRET}")
        for number in range(2):
            body = {"prompt": SECRET, SECRET: SECRET}
            id_ = {"x-request-id": f"request-{number}"}
            await client.post("/v1/completions", json=body, headers=id_)
        newest, oldest = await errors(client)

    assert newest == {
        "route": "/v1/completions",
        "status": 400,
        "type": "invalid_request_error",
        "code": newest["code"],
        "count": 2,
        "last_request_id": "request-1",
    }
    assert (oldest["route"], oldest["status"], oldest["count"]) == ("other", 404, 1)


async def test_it_needs_the_key_that_others_need() -> None:
    """And counts who had none."""
    async with app_client(make_state(api_key=("k",))) as client:
        assert (await client.get("/v1/internal/errors")).status_code == 401
        (seen,) = await errors(client, headers={"authorization": "Bearer k"})
    assert (seen["status"], seen["code"]) == (401, "invalid_api_key")


@pytest.mark.parametrize("stream", [True, False])
def test_a_generation_that_breaks_is_listed(stream: bool) -> None:
    """In a stream too, whose status had been 200."""
    backend = make_backend(fault=RuntimeError(SECRET), fault_step=2)
    with serving(backend) as server:
        state: ServerState = server.state
        server.post("/v1/completions", {"prompt": "x", "max_tokens": 8, "stream": stream})
        wait_until(state.recent_errors.newest_first)
        (seen,) = state.recent_errors.newest_first()

    assert (seen.route, seen.status, seen.type) == ("/v1/completions", 500, "server_error")


def test_a_client_that_leaves_while_it_sends_is_nobodys_fault(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """499 in metrics and log, and no error: there is nobody left to answer."""
    head = (
        b"POST /v1/completions HTTP/1.1\r\nhost: a\r\n"
        b"content-type: application/json\r\ncontent-length: 1000\r\n\r\n"
    )

    def ended() -> list[Any]:
        return [record for record in caplog.records if record.getMessage() == "request"]

    with caplog.at_level("INFO", "tgwui_k8s"), serving(make_backend()) as server:
        address = ("127.0.0.1", int(server.url.rpartition(":")[2]))
        with socket.create_connection(address) as client:
            client.sendall(head + b'{"prompt"')
            wait_until(lambda: server.state.num_active_requests)
        wait_until(ended)
        told = server.state.recent_errors.newest_first()

    (record,) = ended()
    assert line_of(record)["status"] == 499
    assert [record for record in caplog.records if record.levelname == "ERROR"] == []
    assert list(told) == []
