"""What one sampler step costs: rows x vocabulary x kind of request, on one core or a GPU.

    python -m benchmarks.sampler [--torch] [--device cuda] [--seconds 0.5]

Logits are drawn once (normal, standard deviation 3: flatter than a language model's, so harder on
nucleus sampling); every step samples a fresh position. The table shows milliseconds per step,
median of the steps that fit into `--seconds`.
"""

from __future__ import annotations

import argparse
import time
from typing import Any

import numpy as np
import torch

from tgwui_k8s.contract import SampledToken, Sampler, SamplingRow
from tgwui_k8s.engine.sampler import NumpySampler
from tgwui_k8s.runtime.sampler import TorchSampler
from tgwui_k8s.sampling import SamplingParams

KINDS: dict[str, dict[str, Any]] = {
    "greedy": {"temperature": 0.0},
    "temperature": {"temperature": 0.8},
    "temperature, top_p": {"temperature": 0.8, "top_p": 0.9},
    "temperature, top_k, top_p": {"temperature": 0.8, "top_k": 40, "top_p": 0.9},
    "temperature, min_p": {"temperature": 0.8, "min_p": 0.05},
    "penalties, temperature, top_p": {
        "temperature": 0.8,
        "top_p": 0.9,
        "repetition_penalty": 1.1,
        "presence_penalty": 0.5,
        "frequency_penalty": 0.5,
    },
    "greedy, logprobs 5": {"temperature": 0.0, "logprobs": 5},
    "temperature, top_p, logprobs 5": {"temperature": 0.8, "top_p": 0.9, "logprobs": 5},
    "all samplers": {
        "temperature": 0.9,
        "dynamic_temperature": True,
        "dynatemp_low": 0.7,
        "dynatemp_high": 1.2,
        "smoothing_factor": 0.2,
        "top_p": 0.95,
        "top_k": 200,
        "min_p": 0.01,
        "typical_p": 0.95,
        "tfs": 0.97,
        "top_a": 0.05,
        "epsilon_cutoff": 1.0,
        "eta_cutoff": 1.0,
        "top_n_sigma": 2.0,
        "xtc_threshold": 0.1,
        "xtc_probability": 0.5,
        "mirostat_mode": 2,
        "presence_penalty": 0.2,
        "frequency_penalty": 0.2,
        "repetition_penalty": 1.1,
        "encoder_repetition_penalty": 1.1,
        "no_repeat_ngram_size": 4,
        "dry_multiplier": 0.8,
        "logit_bias": {7: 1.0},
        "banned_token_ids": (8,),
    },
}


def make_rows(number: int, kind: dict[str, Any], vocab_size: int) -> list[SamplingRow]:
    """Rows with a prompt of a thousand tokens and a few outputs."""
    random = np.random.default_rng(7)
    return [
        SamplingRow(
            params=SamplingParams(max_tokens=10_000, seed=row, **kind),
            eos_token_ids=(2,),
            prompt_token_ids=tuple(random.integers(0, vocab_size, 1000).tolist()),
            output_token_ids=random.integers(0, vocab_size, 50).tolist(),
        )
        for row in range(number)
    ]


def measure(sampler: Sampler, logits: Any, rows: list[SamplingRow], seconds: float) -> float:
    """Median milliseconds of a step, after one that is not counted."""
    indices = list(range(len(rows)))
    guidance: list[int | None] = [None] * len(rows)
    durations: list[float] = []
    started = time.perf_counter()
    while len(durations) < 4 or time.perf_counter() - started < seconds:
        before = time.perf_counter()
        sampled: list[SampledToken] = sampler.sample(logits, rows, indices, guidance)
        durations.append(1000 * (time.perf_counter() - before))
        for row, token in zip(rows, sampled, strict=True):
            row.output_token_ids.append(token.token_id)
    return float(np.median(durations[1:]))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--torch", action="store_true", help="the torch sampler, not NumPy's")
    parser.add_argument("--device", default="cpu", help="where the logits lie, with --torch")
    parser.add_argument("--seconds", type=float, default=0.5, help="per table cell")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    sampler: Sampler = TorchSampler() if arguments.torch else NumpySampler()
    shapes = [(rows, vocab) for vocab in (32_000, 128_256) for rows in (1, 16, 64)]
    print(f"{type(sampler).__name__} on {arguments.device}: milliseconds per step")
    print("| request | " + " | ".join(f"{rows} x {vocab}" for rows, vocab in shapes) + " |")
    print("|---|" + "---|" * len(shapes))
    for name, kind in KINDS.items():
        cells = []
        for rows, vocab in shapes:
            logits: Any = np.random.default_rng(1).normal(0, 3, (rows, vocab)).astype(np.float32)
            if arguments.torch:
                logits = torch.from_numpy(logits).to(arguments.device)
            made = make_rows(rows, kind, vocab)
            cells.append(f"{measure(sampler, logits, made, arguments.seconds):.2f}")
        print(f"| {name} | " + " | ".join(cells) + " |", flush=True)


if __name__ == "__main__":
    main()
