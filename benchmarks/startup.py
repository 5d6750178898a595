"""How long a server takes from nothing to its first token, step by step.

    python -m benchmarks.startup                            # the demo model
    python -m benchmarks.startup --model demo --model bench-models/S --runs 7

Every run starts `tgwui-k8s serve` in a new process and notes, from the moment before the start:
when the port accepts a connection, when /health/live and /health/ready first answer 200, and when
the first token of a streamed completion arrives, which is asked for as soon as the server is ready.
Medians of all runs. Beside them stands the processor time of all the server's processes up to then,
which a busy machine stretches least. The weights are in the page cache from the second run on; the
first run is shown beside the median, since it may have read them from disk.
"""

from __future__ import annotations

import argparse
import asyncio
import statistics
import sys
from collections.abc import Sequence
from pathlib import Path

import msgspec
import uvloop

from benchmarks.api_overhead import cpu_seconds
from benchmarks.load.client import Target, first_model, stream
from benchmarks.load.http import Origin
from benchmarks.load.machine import conditions
from benchmarks.load.server import Server, ServerFailedError


class Milestones(msgspec.Struct, frozen=True):
    """Seconds since the process was started."""

    port_open: float
    live: float
    ready: float
    first_token: float
    cpu: float
    """Processor time of all processes until then."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure every model and print a table; 1 when a server failed."""
    parser = argparse.ArgumentParser(
        prog="startup", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", action="append", metavar="NAME|PATH", help="may be repeated")
    parser.add_argument("--runs", type=int, default=5, metavar="N")
    parser.add_argument("--flag", action="append", default=[], help="for serve, as --flag=--x=y")
    parser.add_argument("--json", action="store_true", help="print all runs as JSON instead")
    options = parser.parse_args(arguments)
    where = conditions()
    runs: dict[str, list[Milestones]] = {}
    try:
        for model in options.model or ["demo"]:
            flags = [*("--model", model_flag(model)), *options.flag]
            runs[model] = [start_once(flags) for _ in range(max(1, options.runs))]
    except ServerFailedError as error:
        print(f"startup: {error}", file=sys.stderr)
        return 1
    print(msgspec.json.encode(runs).decode() if options.json else f"{table(runs)}\n\n{where}")
    return 0


def model_flag(model: str) -> str:
    """A path below here as an absolute one: the server looks up names in its model directory."""
    path = Path(model)
    return str(path.resolve()) if path.exists() else model


def start_once(flags: Sequence[str]) -> Milestones:
    """One server, from its start to its first token. Raises `ServerFailedError`."""
    with Server(flags) as server:
        marks = [
            server.wait_until_listening(),
            server.wait_for("/health/live"),
            server.wait_for("/health/ready"),
            uvloop.run(_first_token(server.url)),
        ]
        family = [server.api_process, *server.api_process.children(recursive=True)]
        seconds = [mark - server.started for mark in marks]
        return Milestones(*seconds, sum(map(cpu_seconds, family)))


def table(runs: dict[str, list[Milestones]]) -> str:
    """Medians as Markdown; seconds."""
    lines = [
        "| model | port open | live | ready | first token | CPU | first run's | runs |",
        "|---|---:|---:|---:|---:|---:|---:|---:|",
    ]
    for model, marks in runs.items():
        medians = [
            statistics.median(getattr(mark, name) for mark in marks)
            for name in Milestones.__struct_fields__
        ]
        cells = [f"{seconds:.2f} s" for seconds in (*medians, marks[0].first_token)]
        lines.append(f"| {model} | {' | '.join(cells)} | {len(marks)} |")
    return "\n".join(lines)


async def _first_token(url: str) -> float:
    origin = Origin.parse(url)
    model = await asyncio.wait_for(first_model(origin, {}), 60.0)
    target = Target(origin, model, max_tokens=2, fields={"ignore_eos": True})
    recording = await stream(target, "Once upon a time")
    if recording.error is not None or recording.first is None:
        raise ServerFailedError(f"the first request failed: {recording.error}")
    return recording.first


if __name__ == "__main__":
    sys.exit(main())
