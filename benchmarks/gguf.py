"""Our `llama.cpp` loader beside `llama_cpp.server`, over HTTP: one file, one library, one run.

    pip install 'llama-cpp-python[server]'      # into the environment that runs this
    python -m benchmarks.gguf MODEL.gguf        # or nothing: the demo model in F32

Per server, alternating, the median of several rounds: process start to first token, tokens per
second of one stream, and of eight at once (`llama_cpp.server` answers them one after the other).
Writes a Markdown table to stdout.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

from benchmarks.load.machine import conditions
from benchmarks.load.server import free_port

PROMPT = "This is a cake recipe:\n\n1."
NUM_TOKENS = 64
NUM_STREAMS = 8
CONTEXT = 2048
START_SECONDS = 300.0


def command(name: str, model: Path, port: int) -> list[str]:
    """How a server is started, both with the same threads and context."""
    threads = str(len(os.sched_getaffinity(0)))
    if name == "tgwui_k8s":
        flags = ["serve", "--model", str(model), "--no-webui", "--num-threads", threads]
        return [sys.executable, "-m", "tgwui_k8s", *flags, "--port", str(port)]
    flags = ["--model", str(model), "--n_threads", threads, "--n_ctx", str(CONTEXT)]
    return [sys.executable, "-m", "llama_cpp.server", *flags, "--port", str(port)]


@contextmanager
def running(name: str, model: Path) -> Iterator[tuple[str, float]]:
    """A server's URL and the seconds from its start to its first token."""
    port = free_port()
    url = f"http://127.0.0.1:{port}/v1/completions"
    started = time.perf_counter()
    with tempfile.TemporaryFile() as log:
        process = subprocess.Popen(command(name, model, port), stdout=log, stderr=log)
        try:
            while True:
                try:
                    complete(url, num_tokens=1)
                    break
                except OSError:
                    if process.poll() is not None or time.perf_counter() - started > START_SECONDS:
                        log.seek(0)
                        sys.exit(f"{name} does not start:\n{log.read().decode()[-2000:]}")
                    time.sleep(0.01)
            yield url, time.perf_counter() - started
        finally:
            process.terminate()
            process.wait()


def complete(url: str, *, num_tokens: int, prompt: str = PROMPT) -> int:
    """The completion tokens of one greedy request."""
    body = {"prompt": prompt, "max_tokens": num_tokens, "temperature": 0}
    data = json.dumps(body).encode()
    request = urllib.request.Request(url, data, {"Content-Type": "application/json"})
    with urllib.request.urlopen(request, timeout=START_SECONDS) as answer:
        return int(json.load(answer)["usage"]["completion_tokens"])


def measure(name: str, model: Path) -> tuple[float, float, float]:
    """Seconds to the first token; tokens per second of one stream, and of several."""
    with running(name, model) as (url, start_seconds):
        complete(url, num_tokens=NUM_TOKENS)
        rates = []
        for count in (1, NUM_STREAMS):
            prompts = [f"{PROMPT} Number {number}:" for number in range(count)]
            started = time.perf_counter()
            with ThreadPoolExecutor(count) as pool:
                done = pool.map(
                    lambda prompt: complete(url, num_tokens=NUM_TOKENS, prompt=prompt), prompts
                )
                num_tokens = sum(done)
            rates.append(num_tokens / (time.perf_counter() - started))
    return start_seconds, rates[0], rates[1]


def main() -> None:
    """Measure and write the table."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("model", nargs="?", type=lambda path: Path(path).resolve())
    parser.add_argument("--rounds", type=int, default=3)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        model = arguments.model or make_demo(Path(folder))
        results: dict[str, list[tuple[float, float, float]]] = {}
        for _ in range(arguments.rounds):
            for name in ("tgwui_k8s", "llama_cpp.server"):
                results.setdefault(name, []).append(measure(name, model))
    print(f"{model.name}; {conditions()}\n")
    print(f"| server | start to first token (s) | 1 stream (tok/s) | {NUM_STREAMS} (tok/s) |")
    print("|---|---|---|---|")
    for name, rounds in results.items():
        first, one, many = (statistics.median(column) for column in zip(*rounds, strict=True))
        print(f"| {name} | {first:.2f} | {one:.1f} | {many:.1f} |")


def make_demo(folder: Path) -> Path:
    """The demo model as a GGUF file in float32."""
    from tests.helpers.gguf_models import make_gguf
    from tgwui_k8s.demo import model_path

    return make_gguf(model_path(), folder / "demo.F32.gguf", split="smollm")


if __name__ == "__main__":
    main()
