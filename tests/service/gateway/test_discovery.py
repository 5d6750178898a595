"""Endpoints that come and go: files, names, and what happens to requests meanwhile."""

from __future__ import annotations

import asyncio
import socket
from collections import deque
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.helpers.gateway import running_gateway, until
from tests.helpers.gateway_scene import BODY, GOOD, PATH
from tests.helpers.scripted_endpoint import Plan, ScriptedEndpoint
from tgwui_k8s.config import GatewaySettings
from tgwui_k8s.errors import UsageError
from tgwui_k8s.gateway.discovery.dns import DnsDiscovery
from tgwui_k8s.gateway.discovery.file import FileDiscovery
from tgwui_k8s.gateway.endpoint import Endpoint, parse_endpoint
from tgwui_k8s.gateway.gateway import discoveries_of


async def published(discovery: Any, count: int) -> list[list[str]]:
    """The URLs of the first sets that a discovery publishes."""
    sets: list[list[str]] = []
    task = asyncio.ensure_future(
        discovery.run(lambda found: sets.append(sorted(str(one.origin) for one in found)))
    )
    await until(lambda: len(sets) >= count)
    task.cancel()
    return sets[:count]


async def test_a_changed_file_is_read_again(tmp_path: Path) -> None:
    """Comments and blank lines do not count; what cannot be understood keeps the last set."""
    path = tmp_path / "endpoints"
    path.write_text("# engines\nhttp://a:1  # first\n\nhttp://b:2\n")
    discovery = FileDiscovery(str(path), recheck_seconds=0.01)
    sets: list[list[str]] = []
    task = asyncio.ensure_future(
        discovery.run(lambda found: sets.append([str(one.origin) for one in found]))
    )
    await until(lambda: sets == [["http://a:1", "http://b:2"]])
    path.write_text("nonsense\n")
    await asyncio.sleep(0.05)
    fresh = tmp_path / "fresh"
    fresh.write_text("tgi+http://c:3\n")
    fresh.replace(path)
    await until(lambda: sets[1:] == [["http://c:3"]])
    path.unlink()
    await asyncio.sleep(0.05)
    assert len(sets) == 2
    task.cancel()


async def test_a_name_gives_all_its_addresses(monkeypatch: pytest.MonkeyPatch) -> None:
    """A headless Service: one endpoint an address; no name at all is no endpoint; a resolver that
    does not answer changes nothing."""
    answers: list[Any] = [
        ["10.0.0.2", "10.0.0.1", "10.0.0.2"],
        socket.gaierror(socket.EAI_AGAIN, "again"),
        socket.gaierror(socket.EAI_NONAME, "none"),
        ["10.0.0.3"],
    ]

    async def resolve(host: str, port: int, **options: Any) -> list[Any]:
        assert (host, port) == ("engines", 5000)
        found = answers.pop(0) if len(answers) > 1 else answers[0]
        if isinstance(found, OSError):
            raise found
        return [(0, 0, 0, "", (address, port)) for address in found]

    monkeypatch.setattr(asyncio.get_running_loop(), "getaddrinfo", resolve, raising=False)
    discovery = DnsDiscovery("http://engines:5000", resolve_seconds=0.01)
    assert await published(discovery, 3) == [
        ["http://10.0.0.1:5000", "http://10.0.0.2:5000"],
        [],
        ["http://10.0.0.3:5000"],
    ]


def test_wrong_sources_are_usage_errors(tmp_path: Path) -> None:
    """Each with a line that says which."""
    for settings, word in (
        (GatewaySettings(), "--endpoint"),
        (GatewaySettings(endpoint=("nonsense",)), "nonsense"),
        (GatewaySettings(endpoint_file=str(tmp_path / "none")), "none"),
        (GatewaySettings(endpoint_dns="https://x"), "--endpoint-dns"),
        (GatewaySettings(endpoint_selector="a=b"), "--endpoint-selector"),
    ):
        with pytest.raises(UsageError, match=word):
            discoveries_of(settings)


async def test_an_endpoint_that_leaves_gets_nothing_new_and_finishes_what_it_has() -> None:
    """Taken out of the set in the middle of an answer."""
    one, other = ScriptedEndpoint(), ScriptedEndpoint(plans=deque([Plan(raw=GOOD)] * 9))
    async with (
        one.serve(),
        other.serve(),
        running_gateway(one.url) as gateway,
        httpx.AsyncClient(timeout=20) as http,
    ):
        gate = asyncio.Event()
        one.plans = deque([Plan(raw=GOOD, gate=gate)])
        slow = asyncio.ensure_future(http.post(gateway.url + PATH, json=BODY))
        await until(lambda: one.num_open == 1)
        fleet = gateway.parts.fleet
        (leaving,) = fleet.states
        fleet.publish("static", [_endpoint(other)])
        await until(lambda: all(state.is_ready for state in fleet.states))
        for _ in range(4):
            response = await http.post(gateway.url + PATH, json=BODY)
            assert response.headers["x-gateway-endpoint"] == other.url[7:]
        gate.set()
        assert (await slow).status_code == 200
        await until(lambda: leaving.num_in_flight == 0)
        assert len(one.requests) == 1


@pytest.mark.parametrize("leaves", [False, True])
async def test_the_requests_of_a_frozen_endpoint_go_elsewhere(leaves: bool) -> None:
    """It closes no connection and answers nothing, be it still in the set or not: after a while of
    silence on all connections its requests are taken away from it."""
    frozen, other = ScriptedEndpoint(), ScriptedEndpoint()
    settings = {"endpoint_silent_seconds": 0.4, "affinity_bound": 0.0}
    async with (
        frozen.serve(),
        other.serve(),
        running_gateway(frozen.url, other.url, **settings) as gateway,
        httpx.AsyncClient(timeout=20) as http,
    ):
        fleet = gateway.parts.fleet
        state = fleet.state_of(frozen.url)
        fleet.state_of(other.url).num_in_flight += 100
        frozen.plans = deque([Plan(0, "stall", raw=GOOD)])
        other.plans = deque([Plan(raw=GOOD)])
        waiting = asyncio.ensure_future(http.post(gateway.url + PATH, json=BODY))
        await until(lambda: frozen.num_open)
        frozen.is_frozen = True
        if leaves:
            fleet.publish("static", [_endpoint(other)])
        response = await waiting
        assert response.headers["x-gateway-endpoint"] == other.url[7:]
        await until(lambda: state.num_in_flight == 0)
        assert state.num_failures == 1


async def test_a_reused_address_is_another_endpoint() -> None:
    """Same address, other pod: breaker, figures and failures of the old one do not stick."""
    endpoint = ScriptedEndpoint()
    async with endpoint.serve(), running_gateway(endpoint.url) as gateway:
        fleet = gateway.parts.fleet
        (old,) = fleet.states
        for _ in range(5):
            old.breaker.fail(asyncio.get_running_loop().time())
        origin = old.endpoint.origin
        fleet.publish("static", [Endpoint("another-pod", origin, "pod-2")])
        (new,) = fleet.states
        assert new is not old
        assert old.is_leaving
        assert not new.breaker.is_tripped
        await until(lambda: new.is_ready)


async def test_an_unready_endpoint_is_left_alone_at_once() -> None:
    """Its own word counts: draining engines answer 503."""
    endpoint = ScriptedEndpoint()
    async with endpoint.serve(), running_gateway(endpoint.url) as gateway:
        (state,) = gateway.parts.fleet.states
        endpoint.is_ready = False
        await until(lambda: not state.is_ready)
        endpoint.is_ready = True
        await until(lambda: state.is_ready)


@pytest.mark.parametrize(
    ("owner", "dialect"), [("tgwui-k8s", "tgwui"), ("vllm", "vllm"), ("llamacpp", "llama-server")]
)
async def test_the_dialect_is_found_out(owner: str, dialect: str) -> None:
    """From whom the models say they belong to."""
    endpoint = ScriptedEndpoint(owned_by=owner)
    async with endpoint.serve(), running_gateway(endpoint.url, num_ready=0) as gateway:
        (state,) = gateway.parts.fleet.states
        await until(lambda: state.dialect is not None)
        assert state.dialect == dialect


def _endpoint(endpoint: ScriptedEndpoint) -> Endpoint:
    return parse_endpoint(endpoint.url)
