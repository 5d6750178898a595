"""One GPU: its bandwidth and arithmetic, what we reach of both, and Transformers in the same run.

    make bench NAME=gpu                                    # on an H100 or H200, within ten minutes
    python -m benchmarks.gpu --streams 1 64 --num-new 128  # in less

On the 8B shape L in bfloat16, which is written first if it is not there. Each part in a process of
its own, so that none has the memory of another:

- the device: copying memory (bytes read and written a second), and a large matrix product;
- this engine: start to first token; one stream against the roofline, which is the copying rate
  divided by the weights' bytes; streams at once (output tokens a second, prefill included); a long
  prompt against the product's rate; the time between tokens of running streams while a prompt
  arrives every four steps, with steps of `--mixed-budget` tokens (`--max-num-batched-tokens`);
- Transformers' continuous batching with as many streams.

Prints a Markdown table with the aims. A part that does not end within `--max-seconds` is left out.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch

from benchmarks.gpu_parts import (
    Figures,
    measure_device,
    measure_ours,
    measure_transformers,
    write_shape,
)
from benchmarks.load.machine import conditions

PARTS: dict[str, Callable[[argparse.Namespace], Figures]] = {
    "model": write_shape,
    "device": measure_device,
    "ours": measure_ours,
    "transformers": measure_transformers,
}


def parse(command: list[str] | None = None) -> argparse.Namespace:
    """Everything that sizes a run."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--model", type=Path, default=Path("bench-models/L"))
    parser.add_argument("--device", default="cuda", choices=["cuda", "cpu"])
    parser.add_argument("--streams", type=int, nargs="+", default=[1, 16, 64, 256])
    parser.add_argument("--peer-streams", type=int, nargs="*", default=[1, 16, 64, 256])
    parser.add_argument("--num-prompt", type=int, default=512, help="tokens of a prompt")
    parser.add_argument("--num-new", type=int, default=256, help="tokens of an answer")
    parser.add_argument("--long-prompt", type=int, default=8191)
    parser.add_argument("--mixed-streams", type=int, default=64)
    parser.add_argument("--mixed-steps", type=int, default=400)
    parser.add_argument("--mixed-budget", type=int, default=512)
    parser.add_argument("--buffer-bytes", type=int, default=4 << 30, help="memory to copy")
    parser.add_argument("--matrix", type=int, default=8192, help="rows of a square matrix")
    parser.add_argument("--max-seconds", type=float, default=560.0)
    parser.add_argument("--part", choices=[*PARTS], help="only this, as JSON into --out")
    parser.add_argument("--out", type=Path)
    parser.add_argument("--started", type=float, default=time.time(), help=argparse.SUPPRESS)
    return parser.parse_args(command)


def run(part: str, command: list[str], seconds: float) -> Figures:
    """The part's figures, from a process of its own; none where it fails or takes too long."""
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "figures.json"
        measure = [sys.executable, "-m", "benchmarks.gpu", *command, "--part", part]
        measure += ["--out", str(out), "--started", str(time.time())]
        try:
            subprocess.run(measure, check=True, timeout=max(1.0, seconds))
        except subprocess.SubprocessError as error:
            print(f"left out: {part} ({type(error).__name__})", file=sys.stderr, flush=True)
            return {}
        figures: Figures = json.loads(out.read_text())
        return figures


def table(figures: dict[str, Figures]) -> str:
    """Markdown: every figure, its share of what the device can do, and the aim."""
    device, ours, peer = (figures.get(part, {}) for part in ("device", "ours", "transformers"))
    lines = [
        f"| {device.get('name', 'device')} | figure | share, ratio | aim |",
        "|---|---:|---:|---:|",
    ]

    def line(name: str, figure: str, share: str = "", aim: str = "") -> None:
        lines.append(f"| {name} | {figure} | {share} | {aim} |")

    if device:
        line("copying memory", f"{device['copy_bytes_s'] / 1e12:.2f} TB/s")
        line("bfloat16 product", f"{device['product_flop_s'] / 1e12:.0f} TFLOP/s")
    if ours:
        line("start → first token", f"{ours['start_s']:.1f} s")
        rate = ours["single_tok_s"]
        share = _share(rate * ours["weight_bytes"], device.get("copy_bytes_s"))
        line("decoding, 1 stream", f"{rate:.1f} tok/s", share, "≥ 75 % of the roofline")
        rate = ours["long_tok_s"]
        share = _share(rate * ours["long_flop_per_token"], device.get("product_flop_s"))
        line("prefill, long prompt", f"{rate:.0f} tok/s", share, "≥ 50 % of the product")
    for size, rate in ours.get("tok_s", {}).items():
        other = peer.get("tok_s", {}).get(size)
        ratio = f"{rate / other:.1f} × Transformers ({other:.0f})" if other else "–"
        aim = "≥ 4 ×, ≥ 10,000 tok/s" if size == "256" else "≥ 4 ×"
        line(f"streams at once: {size}", f"{rate:.0f} tok/s", ratio, aim)
    if itl := ours.get("itl_ms"):
        ratio = f"p99 is {itl['p99'] / itl['p50']:.2f} × that"
        line("median ITL, mixed load", f"{itl['p50']:.1f} ms", ratio, "≤ 2 ×")
    return "\n".join(lines)


def _share(rate: float, limit: float | None) -> str:
    return f"{rate / limit:.0%}" if limit else "–"


def main(command: list[str] | None = None) -> None:
    """Print the table, or measure one part."""
    command = sys.argv[1:] if command is None else command
    arguments = parse(command)
    if arguments.device == "cuda" and not torch.cuda.is_available():
        raise SystemExit("no CUDA device is to be seen here; --device cpu tries the script itself")
    if arguments.part:
        arguments.out.write_text(json.dumps(PARTS[arguments.part](arguments)))
        return
    print(conditions(), flush=True)
    figures: dict[str, Figures] = {}
    for part in PARTS:
        if part != "transformers" or arguments.peer_streams:
            left = arguments.max_seconds - (time.time() - arguments.started)
            figures[part] = run(part, command, left)
    print("\n" + table(figures), flush=True)


if __name__ == "__main__":
    main()
