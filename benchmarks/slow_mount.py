"""How fast a model on a slow network file system is ready, and whether the probe tells the truth.

    python -m benchmarks.slow_mount --model bench-models/M --rate 100MB

The model's folder is mounted again through FUSE, read-only and with a limit on its throughput
(bindfs, which needs root). One run reads the weights with one sequential stream: that is what the
file system gives, and bytes ÷ throughput is the time that nobody can beat. The others start a
server on a fresh mount and ask /health/startup the whole time: with `--prefetch auto` and `off` on
a mount that keeps in memory what was read, as NFS does, and with `auto` on one that does not, as
most FUSE file systems. Every answer must tell as many bytes as can have come by then and no fewer
than the answer before.

The exit code is 1 when loading with `auto` takes more than 1.2 × that time, from the first byte
to ready, or when the probe was wrong.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Sequence
from pathlib import Path

import msgspec

from benchmarks.load.machine import conditions
from benchmarks.load.server import Server, ServerFailedError
from benchmarks.load.slow_mount import slow_mount, why_not
from tgwui_k8s.byte_size import format_byte_size, parse_byte_size
from tgwui_k8s.storage.weights import find_weights

ALLOWED = 1.2
WAYS = {
    "auto": ("auto", True),
    "off": ("off", True),
    "auto, on a mount that keeps nothing": ("auto", False),
}
"""Name to `--prefetch`, and whether the mount keeps what was read."""
_POLL_SECONDS = 0.05
_READ_BYTES = 1 << 20


class Load(msgspec.Struct, frozen=True):
    """One server's start; seconds since the process was started."""

    first_byte: float
    ready: float
    num_answers: int
    """Of the probe, while weights were read."""
    is_true: bool

    @property
    def seconds(self) -> float:
        """From the first byte to ready."""
        return self.ready - self.first_byte


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure and print a table; 1 when the limit was missed."""
    parser = argparse.ArgumentParser(
        prog="slow_mount", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", type=Path, default=Path("bench-models/M"), metavar="PATH")
    parser.add_argument("--rate", default="100MB", metavar="SIZE", help="bytes a second")
    parser.add_argument("--runs", type=int, default=3, metavar="N")
    parser.add_argument("--flag", action="append", default=[], help="for serve, as --flag=--x=y")
    options = parser.parse_args(arguments)
    if (missing := why_not()) is not None:
        print(f"slow_mount: {missing}", file=sys.stderr)
        return 2
    where = conditions()
    rate = parse_byte_size(options.rate)
    num_bytes = find_weights(options.model).num_bytes
    try:
        raw = [read_once(options.model, rate) for _ in range(options.runs)]
        loads = {
            name: [load_once(options.model, rate, options.flag, *how) for _ in range(options.runs)]
            for name, how in WAYS.items()
        }
    except ServerFailedError as error:
        print(f"slow_mount: {error}", file=sys.stderr)
        return 1
    best = statistics.median(raw)
    print(table(num_bytes, best, loads), where, sep="\n\n")
    automatic = [loads[name] for name, (prefetch, _) in WAYS.items() if prefetch == "auto"]
    medians = [statistics.median(load.seconds for load in runs) for runs in automatic]
    is_true = all(load.is_true for runs in automatic for load in runs)
    return 0 if max(medians) <= ALLOWED * best and is_true else 1


def read_once(model: Path, rate: int) -> float:
    """Seconds that one sequential stream takes for the weights of a fresh mount."""
    with slow_mount(model, rate) as folder:
        files = find_weights(folder).files
        started = time.perf_counter()
        for file in files:
            with file.open("rb", buffering=0) as stream:
                while stream.read(_READ_BYTES):
                    pass
        return time.perf_counter() - started


def load_once(
    model: Path, rate: int, more_flags: Sequence[str], prefetch: str, keeps_pages: bool
) -> Load:
    """One server on a fresh mount, watched by the startup probe."""
    with slow_mount(model, rate, keeps_pages=keeps_pages) as folder:
        flags = ("--model", str(folder), "--prefetch", prefetch, *more_flags)
        with Server(flags) as server:
            server.wait_until_listening()
            return _watch(server, rate)


def _watch(server: Server, rate: int) -> Load:
    first_byte, last_bytes, num_answers, is_true = 0.0, 0, 0, True
    while True:
        seconds = time.perf_counter() - server.started
        phase, num_bytes = _ask(server.url)
        if phase == "ready":
            return Load(first_byte or seconds, seconds, num_answers, is_true)
        if num_bytes and not first_byte:
            first_byte = seconds
        if phase == "prefetching":
            num_answers += 1
            # The limiter lets a burst through at first; a second's worth is not a lie.
            possible = rate * (seconds + 1.0) * 1.2
            is_true = is_true and last_bytes <= num_bytes <= possible
            last_bytes = num_bytes
        time.sleep(_POLL_SECONDS)


def _ask(url: str) -> tuple[str, int]:
    """Phase and bytes read; a probe that does not answer at once is a failure."""
    try:
        with urllib.request.urlopen(f"{url}/health/startup", timeout=5.0) as answer:
            body = json.load(answer)
    except urllib.error.HTTPError as error:
        body = json.load(error)
    except OSError as error:
        raise ServerFailedError(f"/health/startup does not answer: {error}") from error
    return body["phase"], body["bytes_read"]


def table(num_bytes: int, best: float, loads: dict[str, list[Load]]) -> str:
    """Medians as Markdown."""
    size, throughput = format_byte_size(num_bytes), format_byte_size(round(num_bytes / best))
    lines = [
        f"{size} of weights; one stream reads them in {best:.1f} s ({throughput}/s).",
        "",
        "| prefetch | start → first byte | first byte → ready | ÷ best | probe's answers | true |",
        "|---|---:|---:|---:|---:|---|",
    ]
    for mode, runs in loads.items():
        first = statistics.median(run.first_byte for run in runs)
        seconds = statistics.median(run.seconds for run in runs)
        answers = statistics.median(run.num_answers for run in runs)
        verdict = "yes" if all(run.is_true for run in runs) else "NO"
        lines.append(
            f"| {mode} | {first:.1f} s | {seconds:.1f} s | {seconds / best:.2f} | {answers:.0f} "
            f"| {verdict} |"
        )
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
