"""Quantized weights beside bfloat16: single products, and a whole model, in one run.

    make bench-models
    python -m benchmarks.quantized --model bench-models/M

Products: a linear layer of 4096 x 4096 by PyTorch in bfloat16, by PyTorch's own int4 kernel, and by
ours in 4 and 8 bits. Model: the checkpoint as it is, quantized to AWQ (written beside it, once) and
rounded to 8 bits at load, each through its loader: prompt tokens a second, and decoding alone and
eight at once. All take turns in every round; medians of `--rounds`. On a GPU `--device cuda`.
"""

from __future__ import annotations

import argparse
import gc
import math
import random
import shutil
import statistics
import sys
import time
from collections.abc import Callable, Iterable
from contextlib import closing
from pathlib import Path

import torch
from torch.nn.functional import linear

from benchmarks.load.machine import conditions
from tests.helpers.paged_driver import PagedDriver
from tests.helpers.quantized_checkpoints import Format, quantize_folder
from tgwui_k8s.contract import LoadRequest, ModelRunner
from tgwui_k8s.registry import get_loader
from tgwui_k8s.runtime.limits import cpu_quota
from tgwui_k8s.runtime.quantized.linear import choose_product
from tgwui_k8s.runtime.quantized.schemes import rounding_group_size
from tgwui_k8s.runtime.quantized.weight import quantize
from tgwui_k8s.storage.model_files import read_json

SIZE = 4096
GROUP_SIZE = 128
ROWS = (1, 4, 16, 64, 256)
PROMPT_TOKENS = 256
DECODE_STEPS = 24
BATCH = 8


def main() -> None:
    """Measure and print both tables."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--model", type=Path, help="a checkpoint in bfloat16; default: no model")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--num-threads", type=int, default=cpu_quota())
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.num_threads)
    print(conditions(), file=sys.stderr)
    device = torch.device(arguments.device)
    print(f"Milliseconds of one product, {SIZE} x {SIZE}, {arguments.num_threads} threads\n")
    table(("rows", *ROWS), product_rows(device, arguments.num_threads, arguments.rounds))
    if arguments.model is not None:
        print("\nTokens a second of the whole model\n")
        heads = ("weights", "GiB", f"prompt of {PROMPT_TOKENS}", "decode 1", f"decode {BATCH}")
        table(heads, model_rows(arguments))


def table(heads: Iterable[object], rows: Iterable[Iterable[object]]) -> None:
    """As Markdown."""
    heads = [str(head) for head in heads]
    print("| " + " | ".join(heads) + " |")
    print("|" + "---|" * len(heads))
    for row in rows:
        print("| " + " | ".join(str(cell) for cell in row) + " |", flush=True)


# ------------------------------------------------------------------------------------ products


def product_rows(device: torch.device, num_threads: int, rounds: int) -> list[list[object]]:
    """One line per way to multiply."""
    weight = torch.randn(SIZE, SIZE) / SIZE**0.5
    dense = weight.to(device, torch.bfloat16)
    make = choose_product(device, torch.bfloat16, num_threads)
    ways: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
        "bfloat16, PyTorch": lambda x: linear(x, dense)
    }
    if device.type == "cpu":
        ways["4 bits, PyTorch"] = torch_int4(weight)
    for bits in (4, 8):
        rounded = quantize(weight, bits=bits, group_size=GROUP_SIZE).to(device)
        ways[f"{bits} bits, ours"] = make(rounded)
    times: dict[tuple[str, int], list[float]] = {}
    for _ in range(rounds):
        for num_rows in ROWS:
            x = torch.randn(num_rows, SIZE, device=device, dtype=torch.bfloat16)
            for name, way in ways.items():
                times.setdefault((name, num_rows), []).append(seconds_of(way, x, device))
    return [
        [name, *(f"{1e3 * statistics.median(times[name, rows]):.2f}" for rows in ROWS)]
        for name in ways
    ]


def seconds_of(
    way: Callable[[torch.Tensor], torch.Tensor], x: torch.Tensor, device: torch.device
) -> float:
    """Of one call, the best of several; the first touches the memory."""
    best = float("inf")
    for _ in range(6):
        started = time.perf_counter()
        way(x)
        if device.type == "cuda":
            torch.cuda.synchronize()
        best = min(best, time.perf_counter() - started)
    return best


def torch_int4(weight: torch.Tensor) -> Callable[[torch.Tensor], torch.Tensor]:
    """PyTorch's kernel for CPUs, whose scales and zeros are bfloat16 like the inputs."""
    rounded = quantize(weight, bits=4, group_size=GROUP_SIZE)
    packed = torch.ops.aten._convert_weight_to_int4pack_for_cpu(rounded.codes.int(), 1)
    scales = rounded.scales.float()
    shifts = (8 - rounded.zeros.float()) * scales
    both = torch.stack([scales.t(), shifts.t()], dim=-1).bfloat16().contiguous()
    return lambda x: torch.ops.aten._weight_int4pack_mm_for_cpu(x, packed, GROUP_SIZE, both)


# --------------------------------------------------------------------------------------- models


def model_rows(arguments: argparse.Namespace) -> list[list[object]]:
    """One line per kind of weights."""
    plain: Path = arguments.model
    awq = plain.with_name(plain.name + "-AWQ")
    if not (awq / "quant_config.json").exists():
        shutil.rmtree(awq, ignore_errors=True)
        shutil.copytree(plain, awq)
        config = read_json(plain / "config.json")
        common = math.gcd(config["hidden_size"], config["intermediate_size"])
        group_size = rounding_group_size(common) or -1
        quantize_folder(awq, Format("awq", group_size=group_size, old_file=True))
    cases: dict[str, tuple[str, Path, dict[str, str]]] = {
        "bfloat16": ("Transformers", plain, {}),
        "AWQ, 4 bits": ("AutoAWQ", awq, {}),
        "rounded to 8 bits": ("Transformers", plain, {"weights": "int8"}),
    }
    if arguments.device == "cpu":
        cases["bfloat16, Native"] = ("Native", plain, {})
        cases["AWQ, Native"] = ("Native", awq, {})
        cases["rounded to 8 bits, Native"] = ("Native", plain, {"weights": "int8"})
    found: dict[str, list[tuple[float, float, float]]] = {name: [] for name in cases}
    sizes: dict[str, float] = {}
    for _ in range(arguments.rounds):
        for name, (loader, folder, options) in cases.items():
            with closing(load(arguments, loader, folder, options)) as runner:
                sizes[name] = runner.info.weight_bytes / 2**30
                found[name].append(speeds(runner))
            gc.collect()
    return [
        [
            name,
            f"{sizes[name]:.2f}",
            *(f"{statistics.median(speed):.1f}" for speed in zip(*runs, strict=True)),
        ]
        for name, runs in found.items()
    ]


def load(
    arguments: argparse.Namespace, loader: str, folder: Path, options: dict[str, str]
) -> ModelRunner:
    """The model, warm."""
    request = LoadRequest(
        model_path=str(folder),
        loader=loader,
        dtype="bfloat16",
        device=arguments.device,
        max_model_len=1024,
        max_num_seqs=BATCH,
        kv_cache_bytes=512 << 20,
        num_threads=arguments.num_threads,
        options=options,
    )
    runner = get_loader(loader).load(request, lambda _: None)
    if not isinstance(runner, ModelRunner):
        raise TypeError(f"{loader} gave no runner")
    runner.warm_up()
    return runner


def speeds(runner: ModelRunner) -> tuple[float, float, float]:
    """Tokens a second of a prompt, of one sequence, and of a batch."""
    driver = PagedDriver(runner)
    vocabulary = range(10, runner.info.vocab_size)
    sequences = [driver.start() for _ in range(BATCH)]
    prompts = [random.Random(i).choices(vocabulary, k=PROMPT_TOKENS) for i in range(BATCH)]
    started = time.perf_counter()
    for sequence, prompt in zip(sequences, prompts, strict=True):
        driver.run((sequence, prompt), num_logits=1)
    prefill = BATCH * PROMPT_TOKENS / (time.perf_counter() - started)
    rates = []
    for batch in (sequences[:1], sequences):
        started = time.perf_counter()
        for step in range(DECODE_STEPS):
            driver.run(*((sequence, [11 + step]) for sequence in batch), num_logits=1)
        rates.append(len(batch) * DECODE_STEPS / (time.perf_counter() - started))
    return prefill, rates[0], rates[1]


if __name__ == "__main__":
    main()
