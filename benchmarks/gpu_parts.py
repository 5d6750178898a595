"""What `benchmarks.gpu` measures: a device, this engine on it, and Transformers beside it."""

from __future__ import annotations

import argparse
import random
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

from benchmarks.load.figures import Spread
from benchmarks.models import SHAPES, train_tokenizer, write_model
from tgwui_k8s.contract import GenerationRequest, ModelRunner
from tgwui_k8s.engine.core import EngineCore
from tgwui_k8s.llm import LLM
from tgwui_k8s.sampling import SamplingParams
from tgwui_k8s.storage.model_files import read_json

Figures = dict[str, Any]
Generate = Callable[[list[list[int]], int], None]

STEPS_BETWEEN_ARRIVALS = 4
LEAST_TOKEN, MOST_TOKEN = 3, 255
"""Token ids that every model here has."""


def write_shape(arguments: argparse.Namespace) -> Figures:
    """Write the checkpoint, if it is not there; a GPU draws its weights in no time."""
    folder: Path = arguments.model
    if not (folder / "tokenizer.json").exists():
        if folder.name not in SHAPES:
            raise SystemExit(f"{folder} holds no model, and {folder.name} is none of {[*SHAPES]}")
        with torch.device(arguments.device):
            write_model(folder.name, folder, train_tokenizer())
    return {}


# -------------------------------------------------------------------------------- the device


def measure_device(arguments: argparse.Namespace) -> Figures:
    """How fast it copies, and how fast it multiplies in bfloat16; the best of several tries."""
    device = torch.device(arguments.device)
    buffer = torch.ones(2, arguments.buffer_bytes, dtype=torch.uint8, device=device)
    copy_seconds = _best_seconds(device, lambda: buffer[0].copy_(buffer[1]))
    matrix = torch.randn(arguments.matrix, arguments.matrix, device=device, dtype=torch.bfloat16)
    product_seconds = _best_seconds(device, lambda: matrix @ matrix)
    return {
        "name": torch.cuda.get_device_name(device) if device.type == "cuda" else "the CPU",
        "copy_bytes_s": 2 * arguments.buffer_bytes / copy_seconds,
        "product_flop_s": 2 * arguments.matrix**3 / product_seconds,
    }


def _best_seconds(device: torch.device, work: Callable[[], object], num_tries: int = 10) -> float:
    times = []
    for _ in range(1 + num_tries):
        begin = time.perf_counter()
        work()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        times.append(time.perf_counter() - begin)
    return min(times[1:])


# -------------------------------------------------------------------------------- the engines


def measure_ours(arguments: argparse.Namespace) -> Figures:
    """Start, one stream, a long prompt, many streams, and the gaps under a mixed load."""
    llm = LLM(
        str(arguments.model.resolve()),
        loader="Transformers",
        device=arguments.device,
        max_num_seqs=max(*arguments.streams, arguments.mixed_streams + 1),
    )

    def generate(prompts: list[list[int]], num_new: int) -> None:
        params = SamplingParams(max_tokens=num_new, temperature=0.0, ignore_eos=True)
        for completion in llm.generate(prompts, params):
            assert len(completion.token_ids) == num_new

    def seconds(num_prompt: int, num_new: int, run: str) -> float:
        begin = time.perf_counter()
        generate(make_prompts(1, num_prompt, run), num_new)
        return time.perf_counter() - begin

    with llm:
        seconds(16, 1, "first")
        figures: Figures = {"start_s": time.time() - arguments.started}
        runner = llm.core.runner
        one = statistics.median(seconds(16, 1, f"one {run}") for run in range(3))
        more = statistics.median(seconds(16, 1 + arguments.num_new, f"{run}") for run in range(3))
        figures["single_tok_s"] = arguments.num_new / (more - one)
        figures["weight_bytes"] = runner.info.weight_bytes
        num_long = min(arguments.long_prompt, runner.info.max_model_len - 1)
        times = [seconds(num_long, 1, f"long {run}") for run in range(4)]
        figures["long_tok_s"] = num_long / statistics.median(times[1:])
        figures["long_flop_per_token"] = prefill_flop(runner, arguments.model, num_long) / num_long
        figures["tok_s"] = measure_streams(generate, arguments.streams, arguments)
        figures["itl_ms"] = mixed_load(llm.core, arguments)
    return figures


def measure_transformers(arguments: argparse.Namespace) -> Figures:
    """Its continuous batching on the same prompts."""
    from benchmarks.peers.transformers_batching import Engine

    generate = Engine(arguments.model).generate
    return {"tok_s": measure_streams(generate, arguments.peer_streams, arguments)}


def measure_streams(
    generate: Generate, streams: Sequence[int], arguments: argparse.Namespace
) -> dict[str, float]:
    """Output tokens a second with so many streams at once, after a few tokens of warm-up."""
    found = {}
    for size in streams:
        generate(make_prompts(size, arguments.num_prompt, "warm-up"), 4)
        prompts = make_prompts(size, arguments.num_prompt, "measured")
        begin = time.perf_counter()
        generate(prompts, arguments.num_new)
        found[str(size)] = size * arguments.num_new / (time.perf_counter() - begin)
        print(f"{size} streams: {found[str(size)]:.0f} tok/s", file=sys.stderr, flush=True)
    return found


def make_prompts(num_prompts: int, num_tokens: int, run: str) -> list[list[int]]:
    """Random tokens, other ones in every run, so that no prefix cache helps."""
    source = random.Random(f"{num_prompts} {num_tokens} {run}")
    return [
        source.choices(range(LEAST_TOKEN, MOST_TOKEN), k=num_tokens) for _ in range(num_prompts)
    ]


def prefill_flop(runner: ModelRunner, model: Path, num_tokens: int) -> float:
    """Operations of a prompt: two per weight and token, and causal attention; one row of logits."""
    config = read_json(model / "config.json")
    tables = 1 if config.get("tie_word_embeddings") else 2
    weights = runner.info.num_parameters - tables * config["vocab_size"] * config["hidden_size"]
    attention = 2 * num_tokens * config["hidden_size"] * config["num_hidden_layers"]
    return 2.0 * weights * num_tokens + float(attention) * num_tokens


# --------------------------------------------------------------------------------- mixed load


def mixed_load(core: EngineCore, arguments: argparse.Namespace) -> dict[str, float]:
    """Median and 99th percentile of the gaps in running streams while prompts keep arriving."""
    usual = core.scheduler.max_num_batched_tokens
    core.scheduler.max_num_batched_tokens = max(arguments.mixed_budget, arguments.mixed_streams)
    streams = make_prompts(arguments.mixed_streams, arguments.num_prompt, "streams")
    arrivals = make_prompts(arguments.mixed_steps, arguments.num_prompt, "arrivals")
    num_tokens = core.runner.info.max_model_len - arguments.num_prompt - 1
    for number, prompt in enumerate(streams):
        _ask(core, f"stream-{number}", prompt, num_tokens)
    last: dict[str, float] = {}
    while len(last) < len(streams):
        _note_tokens(core, last)
    gaps: list[float] = []
    for step, prompt in enumerate(arrivals):
        if step % STEPS_BETWEEN_ARRIVALS == 0:
            _ask(core, f"arrival-{step}", prompt, 1)
        gaps += _note_tokens(core, last)
    for name in [*last, *(f"arrival-{step}" for step in range(len(arrivals)))]:
        core.abort(name)
    while core.has_work:
        core.step()
    core.scheduler.max_num_batched_tokens = usual
    spread = Spread.of(gaps)
    return {"p50": spread.p50, "p99": spread.p99} if spread else {}


def _ask(core: EngineCore, name: str, prompt: list[int], max_tokens: int) -> None:
    params = SamplingParams(max_tokens=max_tokens, temperature=0.0, ignore_eos=True)
    core.add_request(
        GenerationRequest(request_id=name, prompt_token_ids=tuple(prompt), params=params)
    )


def _note_tokens(core: EngineCore, last: dict[str, float]) -> list[float]:
    """Take a step; the gaps in the streams that had a token before."""
    gaps = []
    outputs = core.step()
    now = time.perf_counter()
    for output in outputs:
        name = output.request_id
        if name.startswith("stream"):
            if name in last:
                gaps.append(now - last[name])
            last[name] = now
    return gaps
