"""Measures one engine in this process; started by `compare` in the engine's own environment.

    python child.py ENGINE MODEL --started SECONDS --out FOLDER

Imports nothing but the standard library, NumPy and the engine. Writes `figures.json`, and the
logits of the first prompt, where the engine gives them, as `logits.npy` for the caller to compare.
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
import time
from collections.abc import Callable, Iterator
from importlib import import_module
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

NUM_NEW = 128


class Engine(Protocol):
    """What a module of this folder has as `Engine`; constructed with the model's path."""

    def generate(self, prompts: list[list[int]], num_new: int) -> None:
        """Generate exactly `num_new` tokens for every prompt, greedily, all at once."""
        ...

    def logits(self, token_ids: list[int]) -> npt.NDArray[np.float32] | None:
        """Logits or log probabilities of every position [n, vocab]; None where not to be had."""
        ...


def prompts(num_prompts: int, run: int, vocab_size: int = 32000) -> list[list[int]]:
    """Seeded token ids: one prompt of 128 tokens, or several of 42 to 248.

    Other ones in every run, so that no prefix cache helps; the lengths stay.
    """
    source = random.Random(num_prompts)
    lengths = [128] if num_prompts == 1 else [source.randint(42, 248) for _ in range(num_prompts)]
    source = random.Random(f"{num_prompts} {run}")
    return [[source.randrange(3, vocab_size) for _ in range(length)] for length in lengths]


def measure(engine: Engine, started: float, batches: list[int], num_runs: int) -> dict[str, Any]:
    """Time of the first token since `started`, then medians of `num_runs` of everything else."""
    engine.generate(prompts(1, 0), 1)
    figures: dict[str, Any] = {"start_s": time.time() - started}

    def first_token(run: int) -> None:
        engine.generate(prompts(1, run), 1)

    def stream(run: int) -> None:
        engine.generate(prompts(1, num_runs + run), NUM_NEW)

    figures["ttft_s"] = _median(first_token, num_runs)
    whole = _median(stream, num_runs)
    figures["single_tok_s"] = (NUM_NEW - 1) / (whole - figures["ttft_s"])
    for size in batches:

        def batch(run: int, size: int = size) -> None:
            engine.generate(prompts(size, run), NUM_NEW)

        figures[f"batch_{size}_tok_s"] = size * NUM_NEW / _median(batch, num_runs)
    figures |= memory()
    return figures


def memory() -> dict[str, float]:
    """Peak resident memory, and what of the present one is anonymous, in GiB.

    Of this process and all that it has started: some engines compute in a process of their own.
    """
    named = {"peak_gib": "VmHWM", "anon_gib": "RssAnon"}
    statuses = [
        dict(line.split(":", 1) for line in (process / "status").read_text().splitlines())
        for process in _family(Path("/proc/self"))
    ]
    return {
        name: sum(int(status[field].split()[0]) for status in statuses) / 2**20
        for name, field in named.items()
    }


def _family(process: Path) -> Iterator[Path]:
    yield process
    for task in (process / "task").iterdir():
        for child in (task / "children").read_text().split():
            yield from _family(Path("/proc") / child)


def _median(work: Callable[[int], None], num_runs: int) -> float:
    seconds = []
    for run in range(1, 1 + num_runs):
        begin = time.perf_counter()
        work(run)
        seconds.append(time.perf_counter() - begin)
    return statistics.median(seconds)


def main() -> None:
    """See the module."""
    parser = argparse.ArgumentParser()
    parser.add_argument("engine", metavar="MODULE[:VARIANT]")
    parser.add_argument("model", type=Path)
    parser.add_argument("--started", type=float, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--batch", type=int, action="append", default=[])
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--only-logits", action="store_true")
    arguments = parser.parse_args()
    module, _, variant = arguments.engine.partition(":")
    engine = import_module(module).Engine(arguments.model, *([variant] if variant else []))
    figures = {}
    if not arguments.only_logits:
        figures = measure(engine, arguments.started, arguments.batch, arguments.runs)
    logits = engine.logits(prompts(1, 0)[0])
    if logits is not None:
        np.save(arguments.out / "logits.npy", np.asarray(logits, np.float32))
    (arguments.out / "figures.json").write_text(json.dumps(figures))


if __name__ == "__main__":
    main()
