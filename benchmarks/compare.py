"""This engine beside its peers, offline: equal weights, equal prompts, one run, alternating.

    make bench-models
    make bench-peer PEER=vllm              # and llama-cpp, openvino: environments of their own
    python -m benchmarks.compare S M       # every engine whose environment is there

Per model and engine, the median of several rounds, each in a process of its own and in each the
median of several runs with other prompts: process start to first token (once a round); time to the
first token of a 128-token prompt; decoding of one stream (128 tokens); simultaneous requests
(prompts of 42 to 248 tokens, 128 new ones each; output tokens per second, prefill included);
memory of all the engine's processes; and the logit gap: the mean absolute difference to
Transformers' float32 logits of the same weights, after every position's mean was taken from it.
Text that is fast and wrong is no speed.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import statistics
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from benchmarks.load.machine import conditions

PEERS = Path(__file__).parent / "peers"
ENVIRONMENTS = Path(".venv-peers")
MODELS = Path("bench-models")
BANDWIDTH_BYTES = 1 << 30
MOST_SECONDS = 900


@dataclass(frozen=True)
class Contender:
    """An engine to measure: its environment ("" is ours), and its module with a variant."""

    environment: str
    module: str
    prepare: tuple[str, ...] = ()
    """A command that writes the model in the engine's own format; `{model}` is its folder."""
    makes: str = ""
    """What the command makes, below the model's folder."""
    bits: int = 16
    """Of a weight: only equal ones are compared."""

    @property
    def python(self) -> str:
        """The interpreter it runs with."""
        if not self.environment:
            return sys.executable
        return str((ENVIRONMENTS / self.environment / "bin" / "python").absolute())

    @property
    def is_installed(self) -> bool:
        return Path(self.python).exists()


def _gguf(kind: str, bits: int) -> Contender:
    command = (sys.executable, "-m", "benchmarks.models", "--gguf", kind, "{model}")
    return Contender("llama-cpp", f"llama_cpp_batch:{kind}", command, f"gguf/{kind}.gguf", bits)


def _openvino(weights: str, bits: int) -> Contender:
    exporter = str(ENVIRONMENTS / "openvino" / "bin" / "optimum-cli")
    arguments = ("--task", "text-generation-with-past", "--weight-format", weights)
    made = f"openvino/{weights}"
    command = (
        exporter,
        "export",
        "openvino",
        "--model",
        "{model}",
        *arguments,
        f"{{model}}/{made}",
    )
    return Contender("openvino", f"openvino_genai_batch:{weights}", command, made, bits)


CONTENDERS = {
    "ours": Contender("", "ours"),
    "ours int8": Contender("", "ours:option.weights=int8", bits=8),
    "transformers": Contender("", "transformers_generate"),
    "transformers batching": Contender("", "transformers_batching"),
    "vllm": Contender("vllm", "vllm_offline"),
    "vllm eager": Contender("vllm", "vllm_offline:eager"),
    "llama.cpp bf16": _gguf("BF16", 16),
    "llama.cpp q8_0": _gguf("Q8_0", 8),
    "openvino 16-bit": _openvino("fp16", 16),
    "openvino int8": _openvino("int8", 8),
}
REFERENCE = Contender("", "transformers_generate:float32")
DEFAULT = [name for name in CONTENDERS if name != "vllm eager"]


def run(contender: Contender, model: Path, arguments: list[str], folder: Path) -> dict[str, Any]:
    """Measure one engine in a process of its own; with `logits`, where it gives them.

    Raises `RuntimeError` with the end of what it printed.
    """
    figures_file, logits_file = folder / "figures.json", folder / "logits.npy"
    for file in (figures_file, logits_file):
        file.unlink(missing_ok=True)
    command = [contender.python, str(PEERS / "child.py"), contender.module, str(model.resolve())]
    command += ["--started", str(time.time()), "--out", str(folder), *arguments]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(_search_path(contender))}
    done = subprocess.run(
        command, capture_output=True, text=True, env=environment, timeout=MOST_SECONDS
    )
    if done.returncode:
        raise RuntimeError(_why(done.stdout + done.stderr))
    figures: dict[str, Any] = json.loads(figures_file.read_text())
    if logits_file.exists():
        figures["logits"] = np.load(logits_file)
    return figures


def _why(output: str) -> str:
    """The last errors that an engine told of, else the last of what it said."""
    errors = re.findall(r"^.*\b\w*(?:Error|Exception)\b: .*$", output, re.MULTILINE)
    return " | ".join(errors[-3:])[-900:] or " ".join(output[-600:].split())


def _search_path(contender: Contender) -> list[str]:
    return [str(PEERS), *([] if contender.environment else [str(PEERS.parents[1])])]


def prepare(contender: Contender, model: Path) -> None:
    """Write the model in the engine's format, once."""
    if contender.prepare and not (model / contender.makes).exists():
        command = [part.format(model=model) for part in contender.prepare]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)


def logit_gap(found: npt.NDArray[np.float32], expected: npt.NDArray[np.float32]) -> float:
    """Mean absolute difference of logits or log probabilities [n, vocab], each row centred."""
    rows, width = len(found), min(found.shape[1], expected.shape[1])
    found, expected = found[:rows, :width], expected[:rows, :width]
    found = found - found.mean(axis=1, keepdims=True)
    expected = expected - expected.mean(axis=1, keepdims=True)
    return float(np.abs(found - expected).mean())


def read_bandwidth() -> float:
    """Bytes a second that all cores together read from memory; the best of several attempts."""
    workers = len(os.sched_getaffinity(0))
    parts = [np.ones(BANDWIDTH_BYTES // workers // 8, np.int64) for _ in range(workers)]
    best = 0.0
    with ThreadPoolExecutor(workers) as pool:
        for _ in range(6):
            begin = time.perf_counter()
            list(pool.map(np.max, parts))
            best = max(best, BANDWIDTH_BYTES / (time.perf_counter() - begin))
    return best


def weight_bytes(model: Path) -> int:
    """What one token of one stream has to read."""
    return sum(path.stat().st_size for path in model.glob("*.safetensors"))


def compare(
    names: list[str], model: Path, *, rounds: int, runs: int, batches: list[int]
) -> dict[str, dict[str, float]]:
    """Medians per engine; an engine that fails is reported and left out."""
    found: dict[str, list[dict[str, Any]]] = {name: [] for name in names}
    sizes = [f"--runs={runs}", *(f"--batch={size}" for size in batches)]
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        reference = run(REFERENCE, model, ["--only-logits"], folder)
        for number in range(rounds):
            for name in [*names]:
                try:
                    prepare(CONTENDERS[name], model)
                    figures = run(CONTENDERS[name], model, sizes, folder)
                except (RuntimeError, OSError, subprocess.SubprocessError) as error:
                    print(f"{model.name}: {name} failed: {error}", file=sys.stderr, flush=True)
                    names.remove(name)
                    continue
                logits = figures.pop("logits", None)
                if logits is not None:
                    figures["logit_gap"] = logit_gap(logits, reference["logits"])
                found[name].append(figures)
                said = ", ".join(f"{key} {value:.3g}" for key, value in figures.items())
                print(f"{model.name}: {name}, round {number + 1}: {said}", file=sys.stderr)
    return {
        name: {key: statistics.median(one[key] for one in measured) for key in measured[0]}
        for name, measured in found.items()
        if measured
    }


def table(model: Path, figures: dict[str, dict[str, float]], batches: list[int]) -> str:
    """Markdown: a row per engine, and ours ÷ the best peer's of as many bits a weight."""
    columns = ["start_s", "ttft_s", "single_tok_s", *(f"batch_{size}_tok_s" for size in batches)]
    columns += ["peak_gib", "anon_gib", "logit_gap"]
    lines = [
        f"| {model.name} | " + " | ".join(columns) + " |",
        "|---" + "|---:" * len(columns) + "|",
    ]
    for name, one in figures.items():
        cells = [f"{one[column]:.3g}" if column in one else "–" for column in columns]
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    for name, ours in figures.items():
        bits = CONTENDERS[name].bits
        peers = [
            one
            for peer, one in figures.items()
            if not peer.startswith("ours") and CONTENDERS[peer].bits == bits
        ]
        if name.startswith("ours") and peers:
            ratios = [_ratio(ours, peers, column) for column in columns]
            lines.append(f"| {name} ÷ best peer of {bits} bits | " + " | ".join(ratios) + " |")
    return "\n".join(lines)


def _ratio(ours: dict[str, float], peers: list[dict[str, float]], column: str) -> str:
    values = [one[column] for one in peers if column in one]
    if not values or column not in ours:
        return "–"
    best = max(values) if column.endswith("tok_s") else min(values)
    return f"**{ours[column] / best:.2f}**"


def main() -> None:
    """Print a table per model."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("models", nargs="*", default=["S", "M"])
    parser.add_argument("--engine", action="append", choices=[*CONTENDERS], metavar="NAME")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--runs", type=int, default=3, help="within a round")
    parser.add_argument("--batch", type=int, action="append", help="default: 16")
    arguments = parser.parse_args()
    batches = arguments.batch or [16]
    wanted = arguments.engine or DEFAULT
    names = [name for name in wanted if CONTENDERS[name].is_installed]
    for name in wanted:
        if name not in names:
            peer = CONTENDERS[name].environment
            print(f"left out: {name} (make bench-peer PEER={peer})", file=sys.stderr)
    bandwidth = read_bandwidth()
    print(conditions(), f"\n\nReading memory: {bandwidth / 1e9:.0f} GB/s.\n")
    for model in (MODELS / name for name in arguments.models):
        figures = compare(
            [*names], model, rounds=arguments.rounds, runs=arguments.runs, batches=batches
        )
        print(table(model, figures, batches))
        if "ours" in figures:
            reached = figures["ours"]["single_tok_s"] * weight_bytes(model) / bandwidth
            print(f"\nOne stream in bf16 reads {reached:.0%} of that.\n", flush=True)


if __name__ == "__main__":
    main()
