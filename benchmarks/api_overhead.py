"""What the API process costs per streamed chunk, with a fake model that is far faster than any.

    python -m benchmarks.api_overhead                       # 100 and 256 streams, 200,000 chunks
    python -m benchmarks.api_overhead --streams 100 --tokens 1000000    # is its memory flat?

For every number of streams, three processes: the server with the `fake` loader, its engine, and
`serve_load` with that many requests under way. Reported:

- CPU of the API process per chunk and per token, all it does included: parsing requests, their
  metrics and log lines, the engine's messages, detokenizing, framing, sockets.
- ITL that the API adds: the clients' inter-chunk times less those of a consumer that reads the
  same engine's messages directly (the engine client without HTTP, measured first).
- resident memory of the API process before and after.

Tokens that find their client's last chunk still unsent leave with the next one, so a server that
cannot keep up shows fewer chunks than tokens.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import msgspec
import psutil

from benchmarks.load.direct import direct_itl
from benchmarks.load.figures import Figures, Spread
from benchmarks.load.machine import conditions
from benchmarks.load.report import Report
from benchmarks.load.server import Server, ServerFailedError

_TOKENS_PER_STREAM = 500
_ROOT = Path(__file__).parents[1]


class Overhead(msgspec.Struct, frozen=True, kw_only=True):
    """One row of the table."""

    streams: int
    cpu_us_per_chunk: float
    cpu_us_per_token: float
    api_cpu_share: float
    """Of one core."""
    engine_cpu_share: float
    generator_cpu_share: float
    rss_before_mib: float
    rss_after_mib: float
    direct_itl_ms: Spread
    """Without HTTP."""
    server: Figures


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure and print; 1 when a request failed."""
    parser = argparse.ArgumentParser(
        prog="api_overhead",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--streams", type=int, nargs="+", default=[100, 256], metavar="N")
    parser.add_argument("--tokens", type=int, default=200_000, help="per row of the table")
    parser.add_argument("--speed", type=int, default=20_000, help="tokens/s the model aims at")
    parser.add_argument("--endpoint", choices=("completions", "chat"), default="completions")
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
    options = parser.parse_args(arguments)
    where = conditions()
    try:
        rows = [measure(streams, options) for streams in options.streams]
    except (ServerFailedError, subprocess.CalledProcessError) as error:
        print(f"api_overhead: {error}", file=sys.stderr)
        return 1
    if options.json:
        print(msgspec.json.format(msgspec.json.encode(rows)).decode())
    else:
        print(f"{table(rows)}\n\n{where}")
    return 1 if any(row.server.errors for row in rows) else 0


def measure(streams: int, options: argparse.Namespace) -> Overhead:
    """Start a server, warm it up, load it."""
    direct = direct_itl(streams, options.speed / streams)
    with Server(server_flags(streams, options.speed / streams)) as server:
        server.wait_for("/health/ready")
        generate(server.url, options.endpoint, streams, 2 * streams)
        processes = (server.api_process, server.engine_process)
        rss_before = processes[0].memory_info().rss
        started, before = time.perf_counter(), [cpu_seconds(process) for process in processes]
        report = generate(
            server.url,
            options.endpoint,
            streams,
            max(streams, options.tokens // _TOKENS_PER_STREAM),
        )
        seconds = time.perf_counter() - started
        api, engine = (
            cpu_seconds(process) - used for process, used in zip(processes, before, strict=True)
        )
        return Overhead(
            streams=streams,
            cpu_us_per_chunk=round(1e6 * api / max(1, report.server.chunks), 1),
            cpu_us_per_token=round(1e6 * api / max(1, report.server.output_tokens), 1),
            api_cpu_share=round(api / report.server.duration_s, 2),
            engine_cpu_share=round(engine / seconds, 2),
            generator_cpu_share=round(report.generator.cpu_share, 2),
            rss_before_mib=round(rss_before / 2**20, 1),
            rss_after_mib=round(processes[0].memory_info().rss / 2**20, 1),
            direct_itl_ms=direct,
            server=report.server,
        )


def server_flags(streams: int, tokens_per_second: float) -> list[str]:
    """A fake model that decodes `streams` sequences at once."""
    return [
        *("--loader", "fake", "--model", "fake", "--max-num-seqs", str(streams)),
        *("--loader-option", f"tokens_per_second={tokens_per_second}"),
    ]


def generate(url: str, endpoint: str, streams: int, num_requests: int) -> Report:
    """Run `serve_load` in a process of its own. Raises `CalledProcessError` when it cannot."""
    command = [
        *(sys.executable, "-m", "benchmarks.serve_load", "--json", "-", "--warm-up", "0"),
        *("--url", url, "--endpoint", endpoint, "--ignore-eos", "--prompt-words", "10"),
        *("--concurrency", str(streams), "--num-requests", str(num_requests)),
        *("--max-tokens", str(_TOKENS_PER_STREAM), "--max-seconds", "3600"),
    ]
    finished = subprocess.run(command, stdout=subprocess.PIPE, cwd=_ROOT, check=False)
    if not finished.stdout:
        raise subprocess.CalledProcessError(finished.returncode, command)
    return msgspec.json.decode(finished.stdout, type=Report)


def cpu_seconds(process: psutil.Process) -> float:
    """User and system time of all its threads so far."""
    times = process.cpu_times()
    return float(times.user + times.system)


def table(rows: Sequence[Overhead]) -> str:
    """The rows as Markdown."""
    lines = [
        "| streams | tokens/s | chunks/s | API CPU per chunk | per token | API core | engine core "
        "| load core | ITL p50 (added) | ITL p99 (added) | RSS before → after | errors |",
        "|---:" * 12 + "|",
    ]
    lines += [f"| {' | '.join(_cells(row))} |" for row in rows]
    return "\n".join(lines)


def _cells(row: Overhead) -> list[str]:
    itl = row.server.itl_ms or Spread(0, 0, 0, 0, 0)
    direct = row.direct_itl_ms
    return [
        f"{row.streams}",
        f"{row.server.output_tokens_per_s:.0f}",
        f"{row.server.chunks_per_s:.0f}",
        f"{row.cpu_us_per_chunk:.1f} µs",
        f"{row.cpu_us_per_token:.1f} µs",
        f"{row.api_cpu_share:.0%}",
        f"{row.engine_cpu_share:.0%}",
        f"{row.generator_cpu_share:.0%}",
        f"{itl.p50:.1f} ms ({itl.p50 - direct.p50:+.1f})",
        f"{itl.p99:.1f} ms ({itl.p99 - direct.p99:+.1f})",
        f"{row.rss_before_mib:.0f} → {row.rss_after_mib:.0f} MiB",
        f"{sum(row.server.errors.values())}",
    ]


if __name__ == "__main__":
    sys.exit(main())
