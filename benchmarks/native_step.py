"""One step of the native decoder against what memory and processor allow, in bf16 and int8.

    make bench-models
    python -m benchmarks.native_step --model bench-models/M
    python -m benchmarks.native_step --model bench-models/M --threads 1 --gap --variant avx2

Decoding of 1 to 16 sequences with 150 tokens of context each, and prefill of one prompt. GB/s is
the bytes of the packed weights over the time; beside it its share of what all cores read from
memory in this run (for batch 1 that is the roofline). GFLOP/s counts the products with weights.
Weights take turns in every round; medians of `--rounds`. With `--threads 1` time is the
processor's, so that a busy machine does not count, and GB/s are one core's. `--gap` adds the mean
absolute difference of the logits to Transformers' float32.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from benchmarks.compare import read_bandwidth
from benchmarks.load.machine import conditions
from loaders.native import NativeLoader  # noqa: TID251 - measured by itself
from tgwui_k8s.contract import Batch, LoadRequest, ModelRunner, ScheduledSequence
from tgwui_k8s.runtime.limits import cpu_quota
from tgwui_k8s.runtime.native_library import Variant, variants_here

WEIGHTS = ("bfloat16", "int8")
BATCHES = (1, 2, 4, 8, 16)
CONTEXT, PROMPT = 150, 128


def load(model: Path, weights: str, num_threads: int, variant: Variant) -> ModelRunner:
    """The model with a small cache, on the decoder for one kind of processor."""
    request = LoadRequest(
        model_path=str(model.resolve()),
        loader="Native",
        max_model_len=1024,
        kv_cache_bytes=1 << 29,
        num_threads=num_threads,
        options={"weights": weights},
    )
    runner = NativeLoader(variant).load(request, lambda progress: None)
    assert isinstance(runner, ModelRunner)
    return runner


def decode(num_sequences: int) -> Batch:
    """A token of each of so many sequences."""
    per_sequence = CONTEXT // 16 + 1
    sequences = [
        ScheduledSequence(
            row, CONTEXT, [7 + row],
            (list(range(row * per_sequence, (row + 1) * per_sequence)),), 1,
        )
        for row in range(num_sequences)
    ]  # fmt: skip
    return Batch(sequences, num_sequences)


def prefill(num_logits: int) -> Batch:
    """A prompt of random tokens."""
    tokens = np.random.default_rng(0).integers(3, 30_000, PROMPT).tolist()
    return Batch(
        [ScheduledSequence(0, 0, tokens, (list(range(PROMPT // 16)),), num_logits)], PROMPT
    )


def embedding_bytes(model: Path) -> int:
    """Of an embedding that is not the head as well: a step reads a few rows of it."""
    config = json.loads((model / "config.json").read_text(encoding="utf-8"))
    is_tied = config.get("tie_word_embeddings", False)
    return 0 if is_tied else 2 * config["vocab_size"] * config["hidden_size"]


def num_operations(model: Path, batch: Batch, runner: ModelRunner) -> float:
    """Multiplications and additions with weights; the head's for rows of logits alone."""
    config = json.loads((model / "config.json").read_text(encoding="utf-8"))
    head = config["vocab_size"] * config["hidden_size"]
    in_layers = runner.info.num_parameters - head - embedding_bytes(model) // 2
    return 2.0 * (in_layers * batch.num_tokens + head * batch.num_logits)


def logit_gap(model: Path, runner: ModelRunner) -> float:
    """Mean absolute difference to Transformers' float32 logits of the same checkpoint."""
    import torch
    from transformers import AutoModelForCausalLM

    batch = prefill(PROMPT)
    reference = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32)
    with torch.no_grad():
        expected = reference(torch.tensor([batch.sequences[0].token_ids])).logits[0].numpy()
    return float(np.abs(runner.execute(batch) - expected).mean())


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure and print a table."""
    parser = argparse.ArgumentParser(
        prog="native_step",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--model", type=Path, default=Path("bench-models/M"))
    parser.add_argument("--threads", type=int, default=cpu_quota(), metavar="N")
    variants = {variant.name: variant for variant in variants_here()}
    parser.add_argument("--variant", choices=variants, default=next(iter(variants)))
    parser.add_argument("--rounds", type=int, default=9, metavar="N")
    parser.add_argument("--gap", action="store_true", help="needs torch, and memory for float32")
    options = parser.parse_args(arguments)
    where = conditions()
    clock = time.thread_time if options.threads == 1 else time.perf_counter
    variant = variants[options.variant]
    runners = {
        weights: load(options.model, weights, options.threads, variant) for weights in WEIGHTS
    }
    unread = embedding_bytes(options.model)
    bandwidth = read_bandwidth()
    batches = {f"decode {size}": decode(size) for size in BATCHES}
    batches[f"prompt of {PROMPT}"] = prefill(1)
    print("| step | weights | ms | GB/s | of the memory's | GFLOP/s |")
    print("|---|---|---:|---:|---:|---:|")
    for name, batch in batches.items():
        taken: dict[str, list[float]] = {weights: [] for weights in WEIGHTS}
        for _ in range(options.rounds):
            for weights, runner in runners.items():
                begin = clock()
                runner.execute(batch)
                taken[weights].append(clock() - begin)
        for weights, seconds in taken.items():
            median = statistics.median(seconds)
            speed = (runners[weights].info.weight_bytes - unread) / median
            share = f"{speed / bandwidth:.0%}" if options.threads == cpu_quota() else ""
            rate = num_operations(options.model, batch, runners[weights]) / median / 1e9
            cells = f"{median * 1e3:.1f} | {speed / 1e9:.1f} | {share} | {rate:.0f}"
            print(f"| {name} | {weights} | {cells} |", flush=True)
    for weights, runner in runners.items():
        if options.gap:
            print(f"\nLogit gap, {weights}: {logit_gap(options.model, runner):.4f}")
        runner.close()
    print(
        f"\n{options.model}, {variant.name}, {options.threads} threads, "
        f"memory {bandwidth / 1e9:.1f} GB/s. {where}"
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
