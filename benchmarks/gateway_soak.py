"""Does the gateway leak? Streams, short requests, errors and clients that leave, for minutes.

    make bench NAME=gateway_soak                        ten minutes
    make bench NAME=gateway_soak ARGS="--minutes 1"

A gateway before a fake engine is asked in waves. After each wave all that was under way must be
over: gauges of requests in flight, queue, and endpoint at zero, and no file open that was not open
after the first wave. Over all waves its memory must stay flat: the last third may not need
more than the first (after warm-up) by `--slack-mb`.

Prints a table, one row a wave; the exit code is 1 where something is left.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import os
import re
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from random import Random

import uvloop

from benchmarks.gateways.asking import Connection, connect, request
from benchmarks.gateways.proxies import PROXIES, Server, engine_command, free_port
from benchmarks.load.machine import conditions
from tgwui_k8s.gateway.http_client import HttpClient, Origin, request_bytes

_IN_FLIGHT = re.compile(
    r"^tgwui_gateway_(?:requests_in_flight|endpoint_requests_in_flight|queue_size)\b.* ([0-9.]+)$",
    re.MULTILINE,
)
_WAVE_STREAMS, _WAVE_SHORT, _WAVE_LEAVING = 100, 300, 100
_SETTLE_SECONDS = 15.0
_BAD = b"POST /v1/completions HTTP/1.1\r\nhost: x\r\ncontent-length: 5\r\n\r\n{bad}"


@dataclass(frozen=True)
class Wave:
    """What was left after one."""

    seconds: float
    num_in_flight: float
    num_files: int
    memory_mb: float


async def main() -> int:
    """Soak; the exit code."""
    arguments = _parser().parse_args()
    print(conditions(), end="\n\n")
    print("| after s | in flight | open files | MB |\n|---|---|---|---|")
    with tempfile.TemporaryDirectory() as name:
        folder, engine, port = Path(name), free_port(), free_port()
        core = min(os.sched_getaffinity(0))
        servers = [Server(engine, engine_command(engine), core, folder / "engine.log")]
        try:
            command = PROXIES[0].command(port, engine, folder)
            servers.append(Server(port, command, core, folder / "gateway.log"))
            await asyncio.sleep(3)
            waves = await _soak(port, servers[1], arguments.minutes * 60)
        finally:
            for server in servers:
                server.stop()
    complaints = list(_complaints(waves, arguments.slack_mb))
    print("\n" + ("\n".join(complaints) or "Nothing is left, and memory is flat."))
    return 1 if complaints else 0


async def _soak(port: int, gateway: Server, seconds: float) -> list[Wave]:
    random, start, waves = Random(1), time.monotonic(), []
    while time.monotonic() - start < seconds or len(waves) < 6:
        await _wave(port, random)
        left = await _num_left(port)
        wave = Wave(time.monotonic() - start, left, gateway.num_files, gateway.memory_mb)
        waves.append(wave)
        print(f"| {wave.seconds:.0f} | {left:.0f} | {wave.num_files} | {wave.memory_mb:.1f} |")
        sys.stdout.flush()
    return waves


async def _wave(port: int, random: Random) -> None:
    """All kinds of clients at once; their connections are closed afterwards."""
    stream = request(port, num_chunks=20, chunk_ms=20)

    async def well_behaved(data: bytes) -> None:
        with _closing(await connect(port)) as connection:
            await connection.ask(data)

    async def leaving() -> None:
        with _closing(await connect(port)) as connection, contextlib.suppress(asyncio.TimeoutError):
            await asyncio.wait_for(connection.ask(stream), random.uniform(0, 0.4))

    async def wrong() -> None:
        with _closing(await connect(port)) as connection, contextlib.suppress(ConnectionError):
            await connection.ask(_BAD)

    await asyncio.gather(
        *(well_behaved(stream) for _ in range(_WAVE_STREAMS)),
        *(well_behaved(request(port)) for _ in range(_WAVE_SHORT)),
        *(leaving() for _ in range(_WAVE_LEAVING)),
        *(wrong() for _ in range(20)),
    )


@contextlib.contextmanager
def _closing(connection: Connection) -> Iterator[Connection]:
    try:
        yield connection
    finally:
        connection.close()


async def _num_left(port: int) -> float:
    """What the gauges say, once they are at zero or should be."""
    deadline = time.monotonic() + _SETTLE_SECONDS
    while True:
        client, origin = HttpClient(), Origin("127.0.0.1", port)
        asked = request_bytes("GET", "/metrics", origin)
        exchange = await client.start(origin, asked, connect_seconds=5)
        await exchange.head()
        text = (await exchange.read_all(1 << 24)).decode()
        client.close()
        left = sum(float(value) for value in _IN_FLIGHT.findall(text))
        if not left or time.monotonic() > deadline:
            return left
        await asyncio.sleep(0.1)


def _complaints(waves: list[Wave], slack_mb: float) -> Iterator[str]:
    if any(wave.num_in_flight for wave in waves):
        yield "LEAK: requests are still counted as in flight after they were over."
    third = max(2, len(waves) // 3)
    first, last = waves[1 : 1 + third], waves[-third:]
    grown = statistics.median(w.memory_mb for w in last) - statistics.median(
        w.memory_mb for w in first
    )
    if grown > slack_mb:
        yield f"LEAK: memory has grown by {grown:.1f} MB."
    if min(w.num_files for w in last) > max(w.num_files for w in first):
        yield "LEAK: more files are open than at the beginning."


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--minutes", type=float, default=10.0)
    parser.add_argument("--slack-mb", type=float, default=5.0)
    return parser


if __name__ == "__main__":
    sys.exit(uvloop.run(main()))
