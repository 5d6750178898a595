"""This server beside other engines' own, over HTTP: what their API layers leave of their speed.

    make bench-models
    make bench-peer PEER=vllm              # and llama-cpp: environments of their own
    make bench NAME=serve_compare ARGS="--streams 1 --streams 16"

One server after the other, on equal weights and equal prompts. For every number of streams so many
clients ask at once for 128 tokens each, as `compare` does without HTTP, and `serve_load` listens.
The table has what came a second, what clients saw, the CPU that all of the server's processes took
per token, and what share of the engine's own speed without HTTP (`--offline`) was left.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
import psutil
from tokenizers import Tokenizer

from benchmarks.api_overhead import cpu_seconds
from benchmarks.compare import CONTENDERS, MODELS, Contender, prepare, run
from benchmarks.load.figures import Spread
from benchmarks.load.machine import conditions
from benchmarks.load.report import Report
from benchmarks.load.server import AnyServer, Server, ServerFailedError
from benchmarks.peers.child import NUM_NEW, prompts

_ROOT = Path(__file__).parents[1]
_CONTEXT = 512
_MOST_STREAMS = 64
_WARM_UP_STREAMS, _WARM_UP_RUN = 4, 100


@dataclass(frozen=True)
class Peer:
    """Another engine's server."""

    contender: str
    """Its engine in `compare`: the environment, the format of the model, the speed without HTTP."""
    program: str
    """In the environment's `bin`."""
    arguments: tuple[str, ...]
    """`{model}` is the model in the engine's format."""
    ready_path: str = "/health"
    is_bare: bool = False
    """Takes no field beyond OpenAI's, and lists no model: requests name its path."""
    environment: Mapping[str, str] | None = None

    def path(self, model: Path) -> str:
        """Of the model in the engine's format."""
        return str((model / CONTENDERS[self.contender].makes).resolve())

    @contextmanager
    def serve(self, model: Path) -> Iterator[AnyServer]:
        """The server, once it is ready."""
        contender, path = CONTENDERS[self.contender], self.path(model)
        prepare(contender, model)
        program = str(Path(contender.python).parent / self.program)
        command = [program, *(part.replace("{model}", path) for part in self.arguments)]
        with AnyServer(command, self.environment) as server:
            server.wait_for(self.ready_path)
            yield server


_TRANSFORMERS = ("serve", "{model}", "--port", "{port}", "--dtype", "bfloat16")
PEERS = {
    "transformers serve": Peer("transformers", "transformers", _TRANSFORMERS, is_bare=True),
    "transformers serve, batching": Peer(
        "transformers batching",
        "transformers",
        (*_TRANSFORMERS, "--continuous-batching"),
        is_bare=True,
    ),
    "vllm serve": Peer(
        "vllm",
        "python",  # its own command asks for the version of a package of another name
        (
            *("-m", "vllm.entrypoints.openai.api_server", "--model", "{model}"),
            *("--port", "{port}", "--dtype", "bfloat16", "--max-model-len", "2048"),
            *("--kv-cache-memory-bytes", str(2 << 30)),
        ),
    ),
    "llama-server": Peer(
        "llama.cpp bf16",
        "llama-server",
        (
            *("--model", "{model}", "--port", "{port}", "--parallel", str(_MOST_STREAMS)),
            *("--ctx-size", str(_MOST_STREAMS * _CONTEXT), "--no-webui"),
        ),
    ),
}


@contextmanager
def _serve_ours(model: Path) -> Iterator[AnyServer]:
    with Server(["--model", str(model.resolve())]) as server:
        server.wait_for("/health/ready")
        yield server


@dataclass(frozen=True)
class Row:
    """One server under one load."""

    name: str
    streams: int
    report: Report
    cpu_ms_per_token: float
    offline_tok_s: float | None


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure and print a table; 1 when a server failed or answered wrongly."""
    options = _parser().parse_args(arguments)
    where, model = conditions(), MODELS / options.model
    streams = options.streams or [1, 16, 64]
    rows, failed = list[Row](), False
    for name in options.server or ["ours", *PEERS]:
        contender = CONTENDERS["ours" if name == "ours" else PEERS[name].contender]
        serve = _serve_ours if name == "ours" else PEERS[name].serve
        if not contender.is_installed:
            print(f"left out: {name} (make bench-peer PEER={contender.environment})")
            continue
        try:
            rows += _measure(name, serve, contender, model, streams, offline=options.offline)
        except (ServerFailedError, RuntimeError, subprocess.SubprocessError) as error:
            print(f"serve_compare: {name}: {error}", file=sys.stderr, flush=True)
            failed = True
    print(f"{table(rows)}\n\n{where}")
    return 1 if failed or any(row.report.server.errors for row in rows) else 0


def _measure(
    name: str,
    serve: Callable[[Path], Any],
    contender: Contender,
    model: Path,
    streams: Sequence[int],
    *,
    offline: bool,
) -> list[Row]:
    alone = _offline(contender, model, streams) if offline else {}
    rows, request = [], ["--ignore-eos"]
    if name in PEERS and PEERS[name].is_bare:
        request = ["--model", PEERS[name].path(model)]
    with serve(model) as server, tempfile.TemporaryDirectory() as scratch:
        file = Path(scratch) / "prompts.jsonl"
        _write_prompts(model, _WARM_UP_STREAMS, _WARM_UP_RUN, file)
        _load(server.url, file, _WARM_UP_STREAMS, request)
        for number in streams:
            _write_prompts(model, number, 0, file)
            family = [server.api_process, *server.api_process.children(recursive=True)]
            before = _cpu(family)
            report = _load(server.url, file, number, request)
            used = _cpu(family) - before
            tokens = max(1, report.server.output_tokens)
            rows.append(Row(name, number, report, 1e3 * used / tokens, alone.get(number)))
            print(f"{name}, {number} streams: done", file=sys.stderr, flush=True)
    return rows


def _offline(contender: Contender, model: Path, streams: Sequence[int]) -> dict[int, float]:
    """Output tokens a second without HTTP."""
    prepare(contender, model)
    with tempfile.TemporaryDirectory() as scratch:
        sizes = [f"--batch={number}" for number in streams]
        figures = run(contender, model, sizes, Path(scratch))
    return {number: figures[f"batch_{number}_tok_s"] for number in streams}


def _write_prompts(model: Path, number: int, run: int, file: Path) -> None:
    """The prompts of a run of `compare`, as text."""
    tokenizer = Tokenizer.from_file(str(model / "tokenizer.json"))
    texts = [tokenizer.decode(ids) for ids in prompts(number, run)]
    file.write_text("".join(json.dumps({"prompt": text}) + "\n" for text in texts))


def _load(url: str, prompt_file: Path, streams: int, request: Sequence[str]) -> Report:
    """One request per stream, with these options of `serve_load`."""
    command = [
        *(sys.executable, "-m", "benchmarks.serve_load", "--json", "-", "--url", url),
        *("--prompt-file", str(prompt_file), "--warm-up", "0"),
        *("--concurrency", str(streams), "--num-requests", str(streams)),
        *("--max-tokens", str(NUM_NEW), *request),
    ]
    finished = subprocess.run(command, stdout=subprocess.PIPE, cwd=_ROOT, check=False)
    if not finished.stdout:
        raise subprocess.CalledProcessError(finished.returncode, command)
    return msgspec.json.decode(finished.stdout, type=Report)


def _cpu(processes: Sequence[psutil.Process]) -> float:
    return sum(map(cpu_seconds, processes))


def table(rows: Sequence[Row]) -> str:
    """The rows as Markdown."""
    lines = [
        "| server | streams | tok/s | of offline | TTFT p50 | TTFT p99 | ITL p50 | ITL p99 "
        "| CPU per token | prompt tokens | errors |",
        "|---" + "|---:" * 10 + "|",
    ]
    lines += [f"| {' | '.join(_cells(row))} |" for row in rows]
    return "\n".join(lines)


def _cells(row: Row) -> list[str]:
    server = row.report.server
    ttft, itl = server.ttft_ms or Spread(0, 0, 0, 0, 0), server.itl_ms or Spread(0, 0, 0, 0, 0)
    speed = server.output_tokens_per_s
    return [
        row.name,
        f"{row.streams}",
        f"{speed:.0f}",
        f"{speed / row.offline_tok_s:.0%}" if row.offline_tok_s else "–",
        *(f"{value:.0f} ms" for value in (ttft.p50, ttft.p99, itl.p50, itl.p99)),
        f"{row.cpu_ms_per_token:.2f} ms",
        f"{server.prompt_tokens}",
        ", ".join(f"{count} × {kind}" for kind, count in server.errors.items()) or "none",
    ]


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="serve_compare",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("model", nargs="?", default="S", help="in bench-models/")
    parser.add_argument("--server", action="append", choices=["ours", *PEERS], metavar="NAME")
    parser.add_argument("--streams", type=int, action="append", metavar="N", help="1, 16, 64")
    parser.add_argument("--offline", action="store_true", help="measure without HTTP, too")
    return parser


if __name__ == "__main__":
    sys.exit(main())
