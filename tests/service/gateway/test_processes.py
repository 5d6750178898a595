"""Engines and a gateway as processes: what the README's two terminals show."""

from __future__ import annotations

import json
import signal
import socket
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack
from typing import Any

import pytest

from tests.helpers.gateway import chunks_of
from tests.helpers.gateway_process import GatewayProcess
from tests.helpers.server_process import TIMEOUT_SECONDS, ServerProcess, wait_until

SPEED = {"tokens_per_second": 60}
BODY: dict[str, Any] = {
    "prompt": "Once upon a time",
    "max_tokens": 120,
    "temperature": 1.2,
    "seed": 3,
    "stop": ["zzz"],
    "stream": True,
    "stream_options": {"include_usage": True},
}


@pytest.fixture(scope="module", name="engines")
def engines_fixture() -> Iterator[list[ServerProcess]]:
    """Two that are ready."""
    with ExitStack() as stack:
        engines = [stack.enter_context(ServerProcess(options=SPEED)) for _ in range(2)]
        for engine in engines:
            engine.wait_until_ready()
        yield engines


@pytest.fixture(name="gateway")
def gateway_fixture(engines: list[ServerProcess]) -> Iterator[GatewayProcess]:
    """One that knows both."""
    flags = [part for engine in engines for part in ("--endpoint", engine.url)]
    with GatewayProcess(*flags, "--drain-timeout", "20") as gateway:
        gateway.wait_until_ready()
        wait_until(lambda: num_ready(gateway) == 2)
        yield gateway


def num_ready(gateway: GatewayProcess) -> int:
    """Endpoints that take requests."""
    lines = gateway.get("/metrics").text.splitlines()
    ready = (line for line in lines if line.startswith("tgwui_gateway_endpoint_ready{"))
    return sum(line.endswith(" 1.0") for line in ready)


def curl(url: str) -> subprocess.Popen[bytes]:
    """`curl -N` of a stream."""
    return subprocess.Popen(
        [
            *("curl", "--silent", "--show-error", "--no-buffer", "--include"),
            *("--header", "Content-Type: application/json", "--data", json.dumps(BODY)),
            url + "/v1/completions",
        ],
        stdout=subprocess.PIPE,
    )


def text_of(stream: str) -> str:
    """What a complete stream says."""
    return "".join(one["text"] for chunk in chunks_of(stream) for one in chunk["choices"])


def test_sigterm_lets_streams_finish(engines: list[ServerProcess], gateway: GatewayProcess) -> None:
    """Exit code 0, after the last byte."""
    client = curl(gateway.url)
    assert client.stdout is not None
    start = client.stdout.read1()
    gateway.signal(signal.SIGTERM)
    gateway.wait_for_event("drain_timeout_s")
    rest, _ = client.communicate(timeout=TIMEOUT_SECONDS)
    _, _, body = (start + rest).partition(b"\r\n\r\n")
    assert len(chunks_of(body.decode())) > 20
    assert gateway.wait() == 0


def test_a_killed_engine_takes_no_stream_along(
    engines: list[ServerProcess], gateway: GatewayProcess
) -> None:
    """`kill -9` of the engine that serves it: the stream goes on to its right end, and metrics and
    log say so."""
    whole = engines[0].http.post(engines[0].url + "/v1/completions", json=BODY).text
    client = curl(gateway.url)
    assert client.stdout is not None
    received = b""
    while received.count(b"data:") < 20:
        received += client.stdout.read1()
    head, _, start = received.partition(b"\r\n\r\n")
    (victim,) = [engine for engine in engines if engine.url[7:].encode() in head]
    for process in (victim.process, *victim.children()):
        process.kill()

    rest, _ = client.communicate(timeout=TIMEOUT_SECONDS)
    assert client.returncode == 0
    assert text_of((start + rest).decode()) == text_of(whole)
    assert chunks_of((start + rest).decode())[-1]["usage"]["completion_tokens"] == 120
    assert "continuations_total{model_name=" in gateway.get("/metrics").text
    assert gateway.wait_for_event("num_continuations")["reason"] == "connection_lost"


def test_wrong_settings_and_taken_ports_have_their_exit_codes() -> None:
    """2 for usage, 3 for a port, each with one line that says what to do."""
    with GatewayProcess() as gateway:
        assert gateway.wait() == 2
        assert "--endpoint" in gateway.log[-1]["msg"]
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        with GatewayProcess("--endpoint", "http://x:1", "--port", port) as gateway:
            assert gateway.wait() == 3
            assert "--gateway-port" in gateway.log[-1]["msg"]
