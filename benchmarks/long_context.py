"""Decoding time against context and against batch, beside Transformers; writes the plots.

    make bench-models
    python -m benchmarks.long_context --out docs/images

One step of S (30 layers, 3 KV heads of 64: 23 KB of keys and values a token) in three sweeps:

- context: one sequence with 1k to 32k tokens behind it;
- uneven: eight sequences, seven of 512 tokens and one with 1k to 32k. What counts here is the sum
  of the contexts; an engine that pads to the longest pays for eight long ones;
- batch: 1 to 32 sequences of 1k each.

Transformers steps with its `DynamicCache` of random keys and values, as `generate` does (padded in
the uneven sweep, and only as far as `--peer-gib` of cache reaches). Ours reads blocks that were
computed. Engines alternate; medians of `--steps`.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.load.machine import conditions
from tgwui_k8s.contract import Batch, ScheduledSequence
from tgwui_k8s.llm import LLM

CONTEXTS = (1024, 2048, 4096, 8192, 16384, 32000)
BATCHES = (1, 2, 4, 8, 16, 32)
SHORT, UNEVEN_ROWS, BATCH_CONTEXT = 512, 8, 1024
FILL = 2048

Sweeps = dict[str, list[tuple[int, list[int]]]]
"""Name to (x of the plot, contexts of the batch) of each point."""

LABELS = {
    "context": ("One sequence", "tokens of context"),
    "uneven": ("Eight sequences, seven of 512 tokens", "tokens of the longest context"),
    "batch": ("Sequences of 1024 tokens", "sequences"),
}


def sweeps(longest: int) -> Sweeps:
    """Every point whose contexts have at most `longest` tokens in sum."""
    points = {
        "context": [(length, [length]) for length in CONTEXTS],
        "uneven": [(length, [length] + [SHORT] * (UNEVEN_ROWS - 1)) for length in CONTEXTS],
        "batch": [(size, [BATCH_CONTEXT] * size) for size in BATCHES],
    }
    return {
        name: [(x, contexts) for x, contexts in many if sum(contexts) <= longest]
        for name, many in points.items()
    }


class Ours:
    """The runner behind `LLM`, over blocks that hold computed keys and values."""

    def __init__(self, model: Path, loader: str, longest: int) -> None:
        self.llm = LLM(
            str(model.resolve()), loader=loader, max_model_len=min(longest, CONTEXTS[-1]) + 1
        )
        self._runner = self.llm.core.runner
        self._block_size = self._runner.layout.block_size
        self._num_blocks = longest // self._block_size + max(BATCHES)
        self._fill()

    def _fill(self) -> None:
        """Compute short prompts into all blocks that are read later: long ones take longer."""
        tokens = np.random.default_rng(0).integers(3, 30_000, FILL).tolist()
        per_prompt = FILL // self._block_size
        for first in range(0, self._num_blocks, per_prompt):
            count = min(per_prompt, self._num_blocks - first)
            table = list(range(first, first + count))
            for start in range(0, count * self._block_size, SHORT):
                part = tokens[start : min(start + SHORT, count * self._block_size)]
                self._runner.execute(
                    Batch([ScheduledSequence(0, start, part, (table,), 0)], len(part))
                )

    def step(self, contexts: Sequence[int]) -> Callable[[], object]:
        """What computes the next token of sequences with so many tokens behind them."""
        sequences, first = [], 0
        for row, context in enumerate(contexts):
            count = context // self._block_size + 1
            table = list(range(first, first + count))
            sequences.append(ScheduledSequence(row, context, [7], (table,), 1))
            first += count
        batch = Batch(sequences, len(sequences))
        return lambda: self._runner.execute(batch)


class Transformers:
    """Stock Transformers in bfloat16 with sdpa."""

    def __init__(self, model: Path, max_cache_bytes: float) -> None:
        import torch
        from transformers import AutoModelForCausalLM

        self._torch = torch
        self._max_cache_bytes = max_cache_bytes
        self._model = AutoModelForCausalLM.from_pretrained(model, dtype=torch.bfloat16).eval()

    def step(self, contexts: Sequence[int]) -> Callable[[], object] | None:
        """The same for a padded batch; None where its cache would be too large."""
        from transformers import DynamicCache

        torch, config = self._torch, self._model.config
        heads, size = config.num_key_value_heads, config.hidden_size // config.num_attention_heads
        rows, longest = len(contexts), max(contexts)
        num_bytes = 2 * 2 * config.num_hidden_layers * rows * heads * longest * size
        if num_bytes > self._max_cache_bytes:
            return None
        layers = [
            torch.randn(rows, heads, longest, size, dtype=torch.bfloat16)
            for _ in range(2 * config.num_hidden_layers)
        ]
        mask = torch.tensor([[0] * (longest - c) + [1] * (c + 1) for c in contexts])

        def run() -> object:
            cache = DynamicCache()
            for index in range(config.num_hidden_layers):
                cache.update(layers[2 * index], layers[2 * index + 1], index)
            begin = time.perf_counter()
            with torch.no_grad():
                self._model(torch.full((rows, 1), 7), attention_mask=mask, past_key_values=cache)
            return time.perf_counter() - begin

        return run


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, print the table and write the plots."""
    parser = argparse.ArgumentParser(
        prog="long_context",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--model", type=Path, default=Path("bench-models/S"))
    parser.add_argument("--loader", default="Native", help="the folder may hold other formats too")
    parser.add_argument("--steps", type=int, default=9, help="per point and engine")
    parser.add_argument("--peer-gib", type=float, default=2.0, help="0 leaves the peer out")
    parser.add_argument("--out", type=Path, help="folder for decode_context.png, decode_batch.png")
    parser.add_argument("--longest", type=int, default=36_000, help="most tokens of a batch")
    parser.add_argument("--json", action="store_true", help="print the figures as JSON instead")
    options = parser.parse_args(arguments)
    where = conditions()
    engines: dict[str, Any] = {"ours": Ours(options.model, options.loader, options.longest)}
    if options.peer_gib:
        engines["transformers"] = Transformers(options.model, options.peer_gib * 2**30)
    figures = {
        name: [(x, measure(engines, contexts, options.steps)) for x, contexts in points]
        for name, points in sweeps(options.longest).items()
    }
    print(json.dumps(figures) if options.json else f"{table(figures)}\n\n{where}")
    if options.out is not None:
        draw(figures, options.out)
    return 0


Figures = dict[str, list[tuple[int, dict[str, float]]]]
"""Sweep to points of (x, milliseconds by engine)."""


def measure(engines: dict[str, Any], contexts: Sequence[int], num_steps: int) -> dict[str, float]:
    """Median milliseconds of a step by engine."""
    steps = {name: engine.step(contexts) for name, engine in engines.items()}
    seconds: dict[str, list[float]] = {name: [] for name, step in steps.items() if step}
    for _ in range(num_steps + 1):  # the first warms up
        for name, taken in seconds.items():
            begin = time.perf_counter()
            own = steps[name]()
            taken.append(own if isinstance(own, float) else time.perf_counter() - begin)
    return {name: statistics.median(taken[1:]) * 1e3 for name, taken in seconds.items()}


def table(figures: Figures) -> str:
    """Everything as Markdown."""
    lines = ["| sweep | x | ours ms | transformers ms |", "|---|---:|---:|---:|"]
    for name, points in figures.items():
        for x, milliseconds in points:
            cells = [
                f"{milliseconds[engine]:.1f}" if engine in milliseconds else ""
                for engine in ("ours", "transformers")
            ]
            lines.append(f"| {name} | {x} | {' | '.join(cells)} |")
    return "\n".join(lines)


def draw(figures: Figures, folder: Path) -> None:
    """Two plots: against context (both sweeps) and against batch."""
    try:
        from matplotlib.figure import Figure
    except ImportError:
        sys.exit("long_context: plots need matplotlib: pip install --group bench")
    folder.mkdir(parents=True, exist_ok=True)
    for file, names in (("decode_context", ("context", "uneven")), ("decode_batch", ("batch",))):
        figure = Figure(figsize=(5 * len(names), 3.6), layout="constrained")
        for axes, name in zip(figure.subplots(1, len(names), squeeze=False)[0], names, strict=True):
            for engine in figures[name][0][1]:
                points = [(x, ms[engine]) for x, ms in figures[name] if engine in ms]
                axes.plot(*zip(*points, strict=True), marker="o", label=engine)
            title, unit = LABELS[name]
            axes.set(title=title, xlabel=unit, ylabel="milliseconds per step")
            axes.set_ylim(bottom=0)
            axes.grid(alpha=0.3)
            axes.legend()
        figure.savefig(folder / f"{file}.png", dpi=110)


if __name__ == "__main__":
    sys.exit(main())
