"""Does the server leak? Full load for half an hour, from clients of every temper.

    make bench NAME=soak                                 thirty minutes on the demo model
    make bench NAME=soak ARGS="--minutes 3 --model bench-models/S"

Streams and answers in one piece, more of them than the batch has rows, while other clients close
their connections early, stop everything that runs, send prompts beyond the context and bodies that
are wrong. `load/tempers.py` says how each should be answered.

Afterwards nobody asks, and then nothing may be left: no request running or waiting, no block of the
KV cache in use, no file open that was not open after the warm-up, no answer of the kind 5xx, no
error in the log. Resident memory of both processes is sampled all the time; a line fitted to it
after the warm-up must be flat: over the whole time it may not rise by more than `--slack-mib`,
or than twice the fit's own error where that is larger. The exit code is 1 where something is left.
"""

from __future__ import annotations

import argparse
import asyncio
import re
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from random import Random

import msgspec
import numpy as np
import uvloop

from benchmarks.load import tempers
from benchmarks.load.client import Target, first_model
from benchmarks.load.http import Origin, ask
from benchmarks.load.machine import conditions
from benchmarks.load.server import Server, ServerFailedError
from benchmarks.startup import model_flag

_NUM_SAMPLES = 60
_WARM_UP_SHARE = 1 / 3
_LONGEST_END_SECONDS = 600.0
_SETTLE_SECONDS = 15.0
_GAUGES = ("tgwui_num_requests_running", "tgwui_num_requests_waiting", "tgwui_kv_cache_usage_perc")
_SERVER_ERRORS = re.compile(
    r'^tgwui_http_requests_total\{(?!.*route="/health).*code="5\d\d".*\} ([0-9.e+]+)$', re.M
)
"""Probes are answered with 503 while the model loads, as they should be."""


@dataclass(frozen=True)
class Sample:
    """The server at one moment."""

    minutes: float
    api_mib: float
    engine_mib: float
    num_files: int
    """Of both processes."""


@dataclass
class Tally:
    """How often clients of a temper were answered as they should be, and what else happened."""

    right: Counter[str] = field(default_factory=Counter)
    complaints: Counter[str] = field(default_factory=Counter)


def main(arguments: Sequence[str] | None = None) -> int:
    """Soak; 1 where something is left."""
    options = _parser().parse_args(arguments)
    print(conditions(), end="\n\n", flush=True)
    flags = ["--model", model_flag(options.model), *options.flag]
    try:
        with Server(flags) as server:
            server.wait_for("/health/ready")
            samples, tally, left = uvloop.run(_soak(server, options))
            errors = _errors(server.log_lines())
    except ServerFailedError as error:
        print(f"soak: {error}", file=sys.stderr)
        return 1
    print(f"\n{_counts(tally)}\n")
    complaints = [*_trends(samples, options.slack_mib), *_leftovers(samples, tally, left, errors)]
    print("\n" + ("\n".join(complaints) or "Nothing is left, and memory is flat."))
    return 1 if complaints else 0


async def _soak(
    server: Server, options: argparse.Namespace
) -> tuple[list[Sample], Tally, dict[str, float]]:
    """Samples, tally, and what the gauges say afterwards."""
    origin = Origin.parse(server.url)
    target = Target(origin, await first_model(origin, {}))
    scene = tempers.Scene(target, 2 * await _context_length(origin))
    crew: dict[tempers.Temper, int] = {
        tempers.listen: options.streams,
        tempers.wait: max(1, options.streams // 8),
        tempers.leave: max(1, options.streams // 4),
        tempers.ask_too_much: 1,
        tempers.ask_nonsense: 2,
        tempers.stop_all: 1,
    }
    tally, is_over = Tally(), asyncio.Event()
    clients = [
        asyncio.ensure_future(_keep_asking(temper, scene, Random(seed), tally, is_over))
        for temper, number in crew.items()
        for seed in range(number)
    ]
    samples = await _watch(server, options.minutes)
    is_over.set()
    await asyncio.wait_for(asyncio.gather(*clients), _LONGEST_END_SECONDS)
    return samples, tally, await _what_is_left(origin)


async def _keep_asking(
    temper: tempers.Temper, scene: tempers.Scene, draw: Random, tally: Tally, is_over: asyncio.Event
) -> None:
    name = getattr(temper, "__name__", "client")
    while not is_over.is_set():
        complaint = await temper(scene, draw)
        if complaint is None:
            tally.right[name] += 1
        else:
            tally.complaints[f"{name}: {complaint}"] += 1
        # Those who are refused at once must not take the server for themselves.
        await asyncio.sleep(0.5 if name.startswith("ask") else 0.0)


async def _watch(server: Server, minutes: float) -> list[Sample]:
    print("| minute | API MiB | engine MiB | open files |\n|---:|---:|---:|---:|", flush=True)
    api, engine, samples = server.api_process, server.engine_process, list[Sample]()
    for number in range(1, _NUM_SAMPLES + 1):
        await asyncio.sleep(60 * minutes / _NUM_SAMPLES)
        sample = Sample(
            minutes * number / _NUM_SAMPLES,
            api.memory_info().rss / 2**20,
            engine.memory_info().rss / 2**20,
            api.num_fds() + engine.num_fds(),
        )
        samples.append(sample)
        cells = f"{sample.minutes:.1f} | {sample.api_mib:.1f} | {sample.engine_mib:.1f}"
        print(f"| {cells} | {sample.num_files} |", flush=True)
    return samples


async def _what_is_left(origin: Origin) -> dict[str, float]:
    """The gauges once they are at zero, or should be; and the number of answers of 5xx."""
    for _ in range(int(_SETTLE_SECONDS / 0.5)):
        _, body = await ask(origin, origin.request("GET", "/metrics", {}, b""))
        text = body.decode()
        left = {name: sum(map(float, _values(name, text))) for name in _GAUGES}
        if not any(left.values()):
            break
        await asyncio.sleep(0.5)
    return {**left, "answers of 5xx": sum(map(float, _SERVER_ERRORS.findall(text)))}


def _values(name: str, text: str) -> list[str]:
    return re.findall(rf"^{name}(?:\{{.*\}})? ([0-9.e+-]+)$", text, re.M)


async def _context_length(origin: Origin) -> int:
    _, body = await ask(origin, origin.request("GET", "/v1/models", {}, b""))
    return int(msgspec.json.decode(body)["data"][0]["max_model_len"])


def _errors(lines: Sequence[bytes]) -> list[str]:
    """Lines of the log that tell of errors."""
    return [line.decode(errors="replace")[:400] for line in lines if b'"level":"error"' in line]


def _counts(tally: Tally) -> str:
    lines = ["| client | answered as it should be |", "|---|---:|"]
    return "\n".join([*lines, *(f"| {name} | {n} |" for name, n in tally.right.items())])


def trend(minutes: Sequence[float], values: Sequence[float]) -> tuple[float, float]:
    """Slope of a fitted line, per hour, and its standard error."""
    hours = np.asarray(minutes) / 60
    (slope, _), covariance = np.polyfit(hours, values, 1, cov=True)
    return float(slope), float(np.sqrt(covariance[0, 0]))


def _trends(samples: Sequence[Sample], slack_mib: float) -> Iterator[str]:
    """Print how memory went after the warm-up; a complaint for a process whose memory rises."""
    warm = samples[int(len(samples) * _WARM_UP_SHARE) :]
    minutes = [sample.minutes for sample in warm]
    hours = (minutes[-1] - minutes[0]) / 60
    for name in ("api", "engine"):
        values = [getattr(sample, f"{name}_mib") for sample in warm]
        slope, error = trend(minutes, values)
        print(
            f"{name}: {np.mean(values):.1f} MiB ± {np.std(values):.1f} after warm-up, slope "
            f"{slope:+.2f} ± {error:.2f} MiB an hour ({slope * hours:+.2f} MiB in all)"
        )
        if slope * hours > max(slack_mib, 2 * error * hours):
            yield f"LEAK: memory of the {name} process rises."


def _leftovers(
    samples: Sequence[Sample], tally: Tally, left: dict[str, float], errors: Sequence[str]
) -> Iterator[str]:
    yield from (f"LEFT: {name} is {value:g}." for name, value in left.items() if value)
    yield from (f"WRONG: {number} × {what}" for what, number in tally.complaints.items())
    yield from (f"LOGGED: {line}" for line in errors[:5])
    third = len(samples) // 3
    first, last = samples[third : 2 * third], samples[2 * third :]
    if min(s.num_files for s in last) > max(s.num_files for s in first):
        yield "LEAK: more files are open than before."


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="soak", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", default="demo", metavar="NAME|PATH")
    parser.add_argument("--minutes", type=float, default=30.0)
    parser.add_argument("--streams", type=int, default=80, help="clients that listen to the end")
    parser.add_argument("--slack-mib", type=float, default=8.0)
    parser.add_argument("--flag", action="append", default=[], help="for serve, as --flag=--x=y")
    return parser


if __name__ == "__main__":
    sys.exit(main())
