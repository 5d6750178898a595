"""The real discovery against an API server that misbehaves in every way that real ones do."""

from __future__ import annotations

import asyncio
import json
import logging
from collections import deque
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.helpers.gateway import until
from tests.helpers.kubernetes_api import KubernetesApi, endpoint_slice, pod
from tgwui_k8s.errors import UsageError
from tgwui_k8s.gateway.discovery import kubernetes
from tgwui_k8s.gateway.discovery.kubernetes import ClusterAccess, KubernetesDiscovery
from tgwui_k8s.gateway.endpoint import Endpoint
from tgwui_k8s.gateway.http_client import Origin

ONE, TWO = pod("10.0.0.1", "u1"), pod("10.0.0.2", "u2")


class Seen:
    """What a discovery has published."""

    def __init__(self) -> None:
        self.sets: list[dict[str, Endpoint]] = []

    def publish(self, found: Any) -> None:
        """A whole set."""
        self.sets.append({endpoint.uid: endpoint for endpoint in found})

    @property
    def uids(self) -> set[str] | None:
        """The last; None before the first."""
        return set(self.sets[-1]) if self.sets else None


@pytest.fixture(autouse=True)
def hasty(monkeypatch: pytest.MonkeyPatch) -> None:
    """Tries again at once."""
    monkeypatch.setattr(kubernetes, "_FIRST_BACKOFF_SECONDS", 0.01)
    monkeypatch.setattr(kubernetes, "_LONGEST_BACKOFF_SECONDS", 0.02)


@asynccontextmanager
async def discovering(api: KubernetesApi, **options: Any) -> AsyncIterator[Seen]:
    """A discovery of `app=engine` at work."""
    seen = Seen()
    token = options.pop("token_file", None)
    discovery = KubernetesDiscovery(
        ClusterAccess(Origin("127.0.0.1", api.port), token),
        namespace="ns",
        selector="app=engine",
        **{"port_name": "api", **options},
    )
    task = asyncio.ensure_future(discovery.run(seen.publish))
    try:
        yield seen
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


async def test_ready_pods_are_found_and_followed() -> None:
    """LIST, then WATCH from its version: pods come, change and go with the events."""
    api = KubernetesApi([endpoint_slice("a", ONE, port=8000)], version=7)
    async with api.serve(), discovering(api) as seen:
        await until(lambda: api.watches)
        (found,) = seen.sets[-1].values()
        assert found == Endpoint("u1", Origin("10.0.0.1", 8000), "engine-u1", None)
        assert api.watch.query == {
            "labelSelector": "app=engine",
            "watch": "true",
            "resourceVersion": "7",
            "allowWatchBookmarks": "true",
            "timeoutSeconds": "60",
        }
        assert "GET /apis/discovery.k8s.io/v1/namespaces/ns/endpointslices?" in api.heads[0]
        api.watch.send("ADDED", endpoint_slice("b", TWO))
        await until(lambda: seen.uids == {"u1", "u2"})
        api.watch.send("MODIFIED", endpoint_slice("a", pod("10.0.0.3", "u3")))
        await until(lambda: seen.uids == {"u3", "u2"})
        api.watch.send("DELETED", endpoint_slice("b", TWO))
        await until(lambda: seen.uids == {"u3"})
        assert api.lists == 1


@pytest.mark.parametrize("condition", [{"ready": False}, {"terminating": True}])
async def test_pods_that_should_get_nothing_leave_at_once(condition: dict[str, bool]) -> None:
    """Not ready, or on their way out, whatever else is said of them."""
    api = KubernetesApi([endpoint_slice("a", ONE, TWO)])
    async with api.serve(), discovering(api) as seen:
        await until(lambda: api.watches)
        api.watch.send("MODIFIED", endpoint_slice("a", pod("10.0.0.1", "u1", **condition), TWO))
        await until(lambda: seen.uids == {"u2"})


async def test_an_address_that_is_used_again_is_another_endpoint() -> None:
    """Keyed by the pod's UID."""
    api = KubernetesApi([endpoint_slice("a", ONE)])
    async with api.serve(), discovering(api) as seen:
        await until(lambda: api.watches)
        api.watch.send("MODIFIED", endpoint_slice("a", pod("10.0.0.1", "reborn")))
        await until(lambda: seen.uids == {"reborn"})


async def test_slices_without_the_port_or_with_nobody_are_nobody() -> None:
    """A slice may have no ports, no endpoints, and a Service another port's name."""
    no_ports = {**endpoint_slice("c", ONE), "ports": None}
    api = KubernetesApi([endpoint_slice("a"), no_ports])
    async with api.serve(), discovering(api) as seen:
        await until(lambda: seen.uids == set())
    api.slices = [endpoint_slice("a", ONE)]
    async with api.serve(), discovering(api, port_name="grpc") as seen:
        await until(lambda: seen.uids == set())
    async with api.serve(), discovering(api, port_name="") as seen:
        await until(lambda: seen.uids == {"u1"})
        assert seen.sets[-1]["u1"].origin.port == 9  # the first


async def test_a_label_names_the_dialect() -> None:
    """Other servers than ours behind a Service; nonsense is as if it were not there."""
    label = {"tgwui-k8s/dialect": "tgi"}
    nonsense = {"tgwui-k8s/dialect": "klingon"}
    api = KubernetesApi([endpoint_slice("a", ONE, **label), endpoint_slice("b", TWO, **nonsense)])
    async with api.serve(), discovering(api) as seen:
        await until(lambda: seen.uids == {"u1", "u2"})
        assert seen.sets[-1]["u1"].dialect == "tgi"
        assert seen.sets[-1]["u2"].dialect is None


async def test_bookmarks_and_pieces_of_lines_change_nothing() -> None:
    """Events arrive in whatever pieces the network makes of them."""
    api = KubernetesApi([endpoint_slice("a", ONE)])
    async with api.serve(), discovering(api) as seen:
        await until(lambda: api.watches)
        api.watch.send("BOOKMARK", {"metadata": {"resourceVersion": "99"}})
        line = json.dumps({"type": "ADDED", "object": endpoint_slice("b", TWO)}).encode() + b"\n"
        for byte in line:
            api.watch.raw(bytes([byte]))
            await asyncio.sleep(0)
        await until(lambda: seen.uids == {"u1", "u2"})
        assert api.lists == 1


@pytest.mark.parametrize("how", ["ended", "severed", "gone", "failed", "nonsense"])
async def test_a_watch_that_is_over_leads_to_a_new_list(how: str) -> None:
    """And the LIST tells what the watch has missed: a DELETED that never came."""
    api = KubernetesApi([endpoint_slice("a", ONE), endpoint_slice("b", TWO)])
    async with api.serve(), discovering(api) as seen:
        await until(lambda: api.watches)
        api.slices, api.version = [endpoint_slice("b", TWO)], 20
        if how == "ended":
            api.watch.end()
        elif how == "severed":
            api.watch.sever()
        elif how == "nonsense":
            api.watch.raw(b"{no json\n")
        else:
            api.watch.send("ERROR", {"code": 410 if how == "gone" else 500, "message": "x"})
        await until(lambda: seen.uids == {"u2"})
        await until(lambda: len(api.watches) == 2)
        assert api.watch.query["resourceVersion"] == "20"


async def test_a_silent_watch_is_not_believed_for_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    """A connection that is half open says nothing and never ends: its time does."""
    monkeypatch.setattr(kubernetes, "_GRACE_SECONDS", 0.05)
    api = KubernetesApi([endpoint_slice("a", ONE)])
    async with api.serve(), discovering(api, watch_seconds=0.05) as seen:
        await until(lambda: api.watches)
        api.slices = [endpoint_slice("a", TWO)]
        await until(lambda: seen.uids == {"u2"})
        assert api.lists >= 2


async def test_a_list_that_takes_too_long_is_given_up(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """And asked again; nothing is published meanwhile, as nothing is known."""
    monkeypatch.setattr(kubernetes, "_LIST_SECONDS", 0.05)
    api = KubernetesApi([endpoint_slice("a", ONE)], delay_seconds=60)
    async with api.serve(), discovering(api) as seen:
        with caplog.at_level(logging.WARNING):
            await until(lambda: "the Kubernetes API cannot be read" in caplog.text)
        assert seen.uids is None
        api.delay_seconds = 0
        await until(lambda: seen.uids == {"u1"})


async def test_while_the_api_server_is_away_all_stays_as_it_was() -> None:
    """Engines do not die of that. When it is back, so is the truth."""
    api = KubernetesApi([endpoint_slice("a", ONE)])
    async with api.serve(), discovering(api) as seen:
        await until(lambda: api.watches)
        async with _away(api):
            await asyncio.sleep(0.1)
            assert seen.uids == {"u1"}
        api.slices = [endpoint_slice("a", TWO)]
        await until(lambda: seen.uids == {"u2"})


@asynccontextmanager
async def _away(api: KubernetesApi) -> AsyncIterator[None]:
    api.statuses = deque([503] * 1000)
    api.watch.sever()
    yield
    api.statuses.clear()


async def test_errors_of_the_api_server_are_no_empty_lists() -> None:
    """403 for a role that lacks the right, 429 when it is busy, 500: ask again."""
    api = KubernetesApi([endpoint_slice("a", ONE)], statuses=deque([403, 429, 500]))
    async with api.serve(), discovering(api) as seen:
        await until(lambda: seen.uids == {"u1"})
        assert len(seen.sets) == 1


async def test_the_token_is_read_each_time(tmp_path: Path) -> None:
    """Kubernetes changes it every hour."""
    token = tmp_path / "token"
    token.write_text("first\n")
    api = KubernetesApi([endpoint_slice("a", ONE)])
    async with api.serve(), discovering(api, token_file=token):
        await until(lambda: api.watches)
        token.write_text("second\n")
        api.watch.end()
        await until(lambda: len(api.watches) == 2)
        assert "authorization: Bearer first\r\n" in api.heads[0]
        assert "authorization: Bearer second\r\n" in api.heads[-1]


def test_outside_a_pod_it_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No variables, or no certificate because the token is not mounted."""
    with pytest.raises(UsageError, match="in a Kubernetes pod only"):
        ClusterAccess.from_pod({})
    monkeypatch.setattr(kubernetes, "_SERVICE_ACCOUNT", tmp_path)
    environ = {"KUBERNETES_SERVICE_HOST": "10.0.0.1", "KUBERNETES_SERVICE_PORT": "443"}
    with pytest.raises(UsageError, match="automountServiceAccountToken"):
        ClusterAccess.from_pod(environ)
    assert kubernetes.own_namespace() == "default"
    (tmp_path / "namespace").write_text("here\n")
    assert kubernetes.own_namespace() == "here"
