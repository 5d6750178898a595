"""What the gateway adds, beside nginx, Envoy and LiteLLM's proxy, in one run.

    make bench-peer PEER=envoy; make bench-peer PEER=litellm     once; nginx is Debian's
    make bench NAME=gateway                                      ten minutes
    make bench NAME=gateway ARGS="--rounds 1 --seconds 2"        a look

All stand before the same fake engine, which is a process of its own. Each proxy has the first core
to itself; engine and load share the others. Rounds go through all of them in turn, so that what the
machine does meanwhile hits all alike; figures are medians over rounds. `direct` is no proxy at all:
what a proxy adds is the difference to it. Everybody writes an access log, as in production.

LiteLLM gets a tenth of the load, which it can bear. Prints a markdown table.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import os
import resource
import statistics
import sys
import tempfile
from collections import defaultdict
from collections.abc import AsyncIterator, Sequence
from pathlib import Path

import uvloop

from benchmarks.gateways.asking import at_a_rate, flat_out, hold, streams
from benchmarks.gateways.proxies import PROXIES, Proxy, Server, engine_command, free_port
from benchmarks.load.machine import conditions

_RATE = 500
_NUM_STREAMS, _CHUNKS_PER_SECOND = 100, 50
_NUM_CONNECTIONS = 16
_SETTLE_SECONDS = 3.0
"""For the gateway to find its engine, and LiteLLM to be ready after it listens."""

Figures = dict[str, float]


async def main() -> None:
    """Measure all that are there and print the table."""
    arguments = _parser().parse_args()
    _allow_many_files()
    print(conditions(), end="\n\n")
    cores = sorted(os.sched_getaffinity(0))
    os.sched_setaffinity(0, set(cores[1:]) or set(cores))
    proxies = [proxy for proxy in PROXIES if _is_wanted(proxy, arguments.only)]
    found: dict[str, list[Figures]] = defaultdict(list)
    with tempfile.TemporaryDirectory() as folder:
        for number in range(arguments.rounds):
            print(f"round {number + 1} of {arguments.rounds}", file=sys.stderr)
            async with _engine(cores, Path(folder)) as engine:
                direct = await _measure(None, engine, arguments)
                found["direct"].append(direct)
                for proxy in proxies:
                    port = free_port()
                    command = proxy.command(port, engine, Path(folder))
                    server = Server(port, command, cores[0], Path(folder) / f"{port}.log")
                    try:
                        found[proxy.name].append(await _measure(server, port, arguments, proxy))
                    finally:
                        server.stop()
    print(_table(found))


@contextlib.asynccontextmanager
async def _engine(cores: Sequence[int], folder: Path) -> AsyncIterator[int]:
    port = free_port()
    server = Server(port, engine_command(port), cores[-1], folder / "engine.log")
    try:
        yield port
    finally:
        server.stop()


async def _measure(
    server: Server | None, port: int, arguments: argparse.Namespace, proxy: Proxy | None = None
) -> Figures:
    """All figures of one proxy, or of none."""
    pace, seconds = (proxy.pace if proxy else 1.0), arguments.seconds
    await asyncio.sleep(_SETTLE_SECONDS)
    await at_a_rate(port, 20, 1)  # What is made at the first request is made now.
    figures: Figures = {"MB at rest": server.memory_mb if server else 0.0}
    latencies = await at_a_rate(port, _RATE * pace, seconds)
    figures |= _percentiles("request", latencies)
    before = server.cpu_seconds if server else 0.0
    answered = await flat_out(port, _NUM_CONNECTIONS, seconds)
    spent = (server.cpu_seconds if server else 0.0) - before
    figures["requests/s"] = answered / seconds
    figures["CPU µs per request"] = spent / max(answered, 1) * 1e6
    before = server.cpu_seconds if server else 0.0
    delays = await streams(port, max(1, int(_NUM_STREAMS * pace)), _CHUNKS_PER_SECOND, seconds)
    spent = (server.cpu_seconds if server else 0.0) - before
    figures |= _percentiles("chunk", delays)
    figures["CPU µs per chunk"] = spent / len(delays) * 1e6
    held = await hold(port, int(arguments.held * pace))
    figures["streams held"] = len(held)
    figures["MB with them"] = server.memory_mb if server else 0.0
    for connection in held:
        connection.close()
    return figures


def _percentiles(name: str, seconds: Sequence[float]) -> Figures:
    cuts = statistics.quantiles(seconds, n=100)
    return {f"{name} p{percent} ms": cuts[percent - 1] * 1000 for percent in (50, 95, 99)}


def _table(found: dict[str, list[Figures]]) -> str:
    """One row per proxy; latencies are what it adds to `direct`."""
    medians = {
        name: {key: statistics.median(one[key] for one in rounds) for key in rounds[0]}
        for name, rounds in found.items()
    }
    direct = medians["direct"]
    columns = list(direct)
    lines = [
        "| | "
        + " | ".join(
            key.replace("request p", "added: request p").replace("chunk p", "added: chunk p")
            for key in columns
        )
        + " |",
        "|---" * (len(columns) + 1) + "|",
    ]
    for name, figures in medians.items():
        cells = []
        for key in columns:
            is_latency = key.endswith(" ms")
            value = figures[key] - (direct[key] if is_latency and name != "direct" else 0.0)
            cells.append(f"{value:.2f}" if is_latency else f"{value:.0f}")
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _is_wanted(proxy: Proxy, only: Sequence[str]) -> bool:
    if only and proxy.name not in only:
        return False
    if not proxy.is_there():
        print(f"{proxy.name} is left out: {proxy.how_to_get}", file=sys.stderr)
        return False
    return True


def _allow_many_files() -> None:
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=10.0, help="per measurement")
    parser.add_argument("--held", type=int, default=2000, help="streams to hold open")
    parser.add_argument("--only", action="append", default=[], help="a proxy's name")
    return parser


if __name__ == "__main__":
    uvloop.run(main())
