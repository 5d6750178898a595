"""Probes and metrics over HTTP, in every phase of a server's life."""

from __future__ import annotations

import pytest

from tests.helpers.app_client import app_client
from tests.helpers.still_backend import StillBackend, make_state
from tgwui_k8s.contract import EngineHealth, LoadProgress

READY = ("/health", "/health/ready", "/v2/health/ready", "/v1/internal/health")
LIVE = ("/health/live", "/v2/health/live")
ALL = (*LIVE, *READY, "/health/startup", "/v2/models/still/ready")


def _dead_backend() -> StillBackend:
    backend = StillBackend()
    backend.health = EngineHealth(alive=False, reason="The engine process was killed (SIGKILL).")
    return backend


@pytest.mark.parametrize("path", ALL)
async def test_a_loaded_server_is_live_started_and_ready(path: str) -> None:
    """Everything is fine."""
    async with app_client(make_state()) as client:
        assert (await client.get(path)).status_code == 200


async def test_while_loading_a_server_is_live_and_nothing_else() -> None:
    """Kubernetes neither restarts it nor sends requests; the progress is visible."""
    state = make_state(is_loaded=False)
    state.load_progress = LoadProgress("loading", 3, 10)
    async with app_client(state) as client:
        status = {path: (await client.get(path)).status_code for path in ALL}
        startup = (await client.get("/health/startup")).json()
    assert status == {path: 200 if path in LIVE else 503 for path in ALL}
    assert (startup["phase"], startup["bytes_read"], startup["bytes_total"]) == ("loading", 3, 10)
    assert startup["error"]["code"] == "model_not_ready"


async def test_a_draining_server_is_live_and_not_ready() -> None:
    """It must finish what it has: no restart, and no new requests."""
    state = make_state()
    state.draining = True
    async with app_client(state) as client:
        for path in LIVE:
            assert (await client.get(path)).status_code == 200
        for path in READY:
            answer = await client.get(path)
            assert (answer.status_code, answer.json()["error"]["code"]) == (503, "draining")


async def test_a_dead_engine_makes_the_server_not_live() -> None:
    """Kubernetes shall restart it, and the probe says why."""
    async with app_client(make_state(_dead_backend())) as client:
        for path in (*LIVE, *READY):
            answer = await client.get(path)
            assert answer.status_code == 503
            assert "SIGKILL" in answer.json()["error"]["message"]


async def test_an_engine_that_died_while_loading_is_not_live() -> None:
    """No model, and none will come."""
    async with app_client(make_state(_dead_backend(), is_loaded=False)) as client:
        assert (await client.get("/health/live")).status_code == 503


@pytest.mark.parametrize(
    ("name", "status"), [("still", 200), ("org/still", 200), ("other", 404), ("", 404)]
)
async def test_kserve_asks_for_a_model_by_name(name: str, status: int) -> None:
    """Names with slashes too; an unknown one is a 404."""
    async with app_client(make_state()) as client:
        assert (await client.get(f"/v2/models/{name}/ready")).status_code == status


@pytest.mark.parametrize("path", [*ALL, "/metrics"])
async def test_probes_need_no_key_and_mind_no_host(path: str) -> None:
    """kubelet calls by pod IP and without a key."""
    async with app_client(make_state(api_key=("k",)), host="10.1.2.3:5000") as client:
        assert (await client.get(path)).status_code == 200


@pytest.mark.parametrize("path", [*ALL, "/metrics", "/v1/models"])
async def test_head_is_get_without_a_body(path: str) -> None:
    """Load balancers probe with HEAD."""
    async with app_client(make_state()) as client:
        assert (await client.head(path)).status_code == 200


async def test_metrics_are_text_for_prometheus() -> None:
    """The engine's figures and the server's, with the model's name."""
    async with app_client(make_state()) as client:
        for path in ("/v1/models", "/health/ready", "/v2/models/org/still/ready"):
            await client.get(path)
        await client.post("/health/ready")
        answer = await client.get("/metrics")
    assert answer.headers["content-type"].startswith("text/plain; version=")
    assert 'tgwui_num_requests_waiting{model_name="still"} 0.0' in answer.text
    for code, route in (
        (200, "/v1/models"),
        (200, "/health/ready"),
        (405, "/health/ready"),
        (200, "/v2/models/{model:path}/ready"),
    ):
        line = f'tgwui_http_requests_total{{code="{code}",route="{route}"}} 1.0'
        assert line in answer.text


async def test_probes_do_not_feed_the_autoscaler() -> None:
    """Only generation routes count as demand."""
    state = make_state()
    async with app_client(state) as client:
        for path in (*ALL, "/metrics", "/v1/models"):
            await client.get(path)
    assert (
        b'tgwui_generation_requests_total{model_name="still"} 0.0'
        in (state.metrics.exposition()[0])
    )
