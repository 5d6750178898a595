"""Do open pages slow the API down?

    python -m benchmarks.web_page                    # 50 pages, 16 clients of the API
    python -m benchmarks.web_page --pages 50 --clients 16 --speed 30 --runs 5

Clients of the API stream from the fake loader, which decodes at a fixed speed, while as many other
streams run as there are pages: through the page's process as a browser asks it, or straight at the
API for comparison, or none. What counts is the clients' inter-token latency, which the detour of
the others must not change. The engine's work is the same with and without the detour.

What the page does to the start is measured by
`python -m benchmarks.startup --flag=--webui --flag=--webui-port=0`, beside the same without flags.
"""

from __future__ import annotations

import argparse
import asyncio
import statistics
import sys
import time
from collections.abc import Sequence
from contextlib import suppress

import msgspec
import psutil
import uvloop

from benchmarks.load.client import Target, stream
from benchmarks.load.figures import Spread
from benchmarks.load.http import Origin
from benchmarks.load.machine import conditions
from benchmarks.load.server import Server, ServerFailedError, free_port

WAYS = ("no pages", "straight at the API", "through the page")
HEADERS = {"x-tgwui-page": "1"}


class Run(msgspec.Struct, frozen=True):
    """One way, once: the clients' latency, and the page's processor time per token it passed."""

    itl: Spread
    page_cpu_us_per_token: float | None


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure all ways and print a table; 1 when something failed."""
    parser = argparse.ArgumentParser(
        prog="web_page", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--pages", type=int, default=50, metavar="N")
    parser.add_argument("--clients", type=int, default=16, metavar="N")
    parser.add_argument("--speed", type=float, default=30.0, help="tokens per second and stream")
    parser.add_argument("--tokens", type=int, default=300, metavar="N", help="per stream")
    parser.add_argument("--runs", type=int, default=5, metavar="N")
    parser.add_argument("--json", action="store_true", help="print all runs as JSON instead")
    options = parser.parse_args(arguments)
    where = conditions()
    port = free_port()
    flags = (
        *("--loader", "fake", "--model", "fake", "--max-num-seqs", "256"),
        *("--loader-option", f"tokens_per_second={options.speed}"),
        *("--webui", "--webui-port", str(port)),
    )
    runs: dict[str, list[Run]] = {way: [] for way in WAYS}
    try:
        with Server(flags) as server:
            server.wait_for("/health/ready")
            _wait_for_page(port)
            for _ in range(options.runs):
                for way in WAYS:
                    runs[way].append(uvloop.run(_measure(way, server, port, options)))
    except (ServerFailedError, RuntimeError) as error:
        print(f"web_page: {error}", file=sys.stderr)
        return 1
    print(msgspec.json.encode(runs).decode() if options.json else f"{_table(runs)}\n\n{where}")
    return 0


async def _measure(way: str, server: Server, page_port: int, options: argparse.Namespace) -> Run:
    api, page = Origin("127.0.0.1", server.port), Origin("127.0.0.1", page_port, False, "/page/api")
    fields = {"ignore_eos": True}
    client = Target(api, "fake", max_tokens=options.tokens, fields=fields)
    other = Target(
        page if way == "through the page" else api,
        "fake",
        endpoint="chat",
        max_tokens=options.tokens,
        fields=fields,
        headers=HEADERS,
    )
    num_others = 0 if way == "no pages" else options.pages
    process = _page_process(server)
    before = _cpu_seconds(process)
    others = [asyncio.create_task(stream(other, f"Page {i}")) for i in range(num_others)]
    clients = [asyncio.create_task(stream(client, f"Client {i}")) for i in range(options.clients)]
    recordings = await asyncio.gather(*clients, *others)
    errors = {recording.error for recording in recordings if recording.error}
    if errors:
        raise RuntimeError(f"{way}: {', '.join(errors)}")
    gaps = (gap for recording in recordings[: options.clients] for gap in recording.gaps)
    itl = Spread.of(gaps)
    if itl is None:
        raise RuntimeError(f"{way}: no tokens came")
    seconds = _cpu_seconds(process) - before
    passed = options.pages * options.tokens
    is_detour = way == "through the page"
    return Run(itl, round(1e6 * seconds / passed, 1) if is_detour else None)


def _page_process(server: Server) -> psutil.Process:
    for child in server.api_process.children(recursive=True):
        if "tgwui_k8s.ui.process" in child.cmdline():
            return child
    raise RuntimeError("the server has no page: is the extra 'ui' installed?")


def _cpu_seconds(process: psutil.Process) -> float:
    times = process.cpu_times()
    return float(times.user + times.system)


def _wait_for_page(port: int, seconds: float = 60.0) -> None:
    """Until its first answer: the port accepts long before."""

    async def ask() -> bytes:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(b"GET / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
        line = await reader.readline()
        writer.close()
        return line

    deadline = time.perf_counter() + seconds
    while time.perf_counter() < deadline:
        with suppress(OSError, asyncio.TimeoutError):
            if b"200" in asyncio.run(asyncio.wait_for(ask(), seconds)):
                return
    raise RuntimeError("the page did not answer")


def _table(runs: dict[str, list[Run]]) -> str:
    lines = [
        "| other streams | ITL p50 ms | ITL p99 ms | page's CPU per token |",
        "|---|---|---|---|",
    ]
    for way, measured in runs.items():
        p50 = statistics.median(run.itl.p50 for run in measured)
        p99 = statistics.median(run.itl.p99 for run in measured)
        cpu = [run.page_cpu_us_per_token for run in measured if run.page_cpu_us_per_token]
        shown = f"{statistics.median(cpu):.0f} µs" if cpu else ""
        lines.append(f"| {way} | {p50:.2f} | {p99:.2f} | {shown} |")
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
