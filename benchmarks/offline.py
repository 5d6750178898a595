"""Our engine beside Transformers, offline, on equal weights and equal prompts, alternating.

    python benchmarks/models.py S M && python benchmarks/offline.py S M

Per model and engine, the median of several runs: time to the first token of a 128-token prompt,
decoding of one stream (128 tokens), and 16 simultaneous requests (prompts of 42 to 248 tokens, 128
new ones each; output tokens per second, prefill included). Every engine runs in a process of its
own, so that start → first token and memory are its own too. The logit gap is the mean absolute
difference to Transformers' float32 logits of the same weights.
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

NUM_NEW = 128
ENGINES = ("ours", "transformers")


def prompts(num_prompts: int, run: int, vocab_size: int = 32000) -> list[list[int]]:
    """Seeded token ids: one prompt of 128 tokens, or several of 42 to 248.

    Other ones in every run, so that no prefix cache helps; the lengths stay.
    """
    source = random.Random(num_prompts)
    lengths = [128] if num_prompts == 1 else [source.randint(42, 248) for _ in range(num_prompts)]
    source = random.Random(f"{num_prompts} {run}")
    return [[source.randrange(3, vocab_size) for _ in range(length)] for length in lengths]


class Ours:
    """`tgwui_k8s.llm.LLM` with its defaults."""

    def __init__(self, model: Path) -> None:
        from tgwui_k8s.llm import LLM

        self.llm = LLM(str(model.resolve()))

    def generate(self, batch: list[list[int]], num_new: int) -> None:
        """Generate exactly `num_new` tokens for every prompt, greedily."""
        from tgwui_k8s.sampling import SamplingParams

        params = SamplingParams(max_tokens=num_new, temperature=0.0, ignore_eos=True)
        for completion in self.llm.generate(batch, params):
            assert len(completion.token_ids) == num_new

    def logits(self, token_ids: list[int]) -> np.ndarray:
        """Logits of every position, float32."""
        from tgwui_k8s.contract import Batch, ScheduledSequence

        runner = self.llm.core.runner
        num_blocks = -(-len(token_ids) // runner.layout.block_size)
        tables = tuple(list(range(num_blocks)) for _ in runner.layout.groups)
        part = ScheduledSequence(0, 0, token_ids, tables, len(token_ids))
        return np.asarray(runner.execute(Batch([part], len(token_ids))))


class Transformers:
    """`model.generate` in bfloat16 with sdpa, left-padded batches."""

    def __init__(self, model: Path, dtype: str = "bfloat16") -> None:
        import torch
        from transformers import AutoModelForCausalLM

        self.torch = torch
        torch.set_num_threads(2)
        self.model = AutoModelForCausalLM.from_pretrained(model, dtype=getattr(torch, dtype))

    def generate(self, batch: list[list[int]], num_new: int) -> None:
        """Generate exactly `num_new` tokens for every prompt, greedily."""
        torch = self.torch
        longest = max(map(len, batch))
        ids = torch.tensor([[0] * (longest - len(prompt)) + prompt for prompt in batch])
        mask = torch.tensor([[0] * (longest - len(prompt)) + [1] * len(prompt) for prompt in batch])
        self.model.generate(
            ids,
            attention_mask=mask,
            max_new_tokens=num_new,
            min_new_tokens=num_new,
            do_sample=False,
            pad_token_id=0,
        )

    def logits(self, token_ids: list[int]) -> np.ndarray:
        """Logits of every position, float32."""
        with self.torch.no_grad():
            return self.model(self.torch.tensor([token_ids])).logits[0].float().numpy()


def measure(engine: str, model: Path, started: float) -> dict[str, Any]:
    """What one process measures; `started` is when it was started."""
    runner = Ours(model) if engine == "ours" else Transformers(model)
    runner.generate(prompts(1, 0), 1)
    figures: dict[str, Any] = {"start_s": time.time() - started}
    figures["ttft_s"] = _median(lambda run: runner.generate(prompts(1, run), 1), first_run=1)
    whole = _median(lambda run: runner.generate(prompts(1, run), NUM_NEW), first_run=11)
    figures["single_tok_s"] = (NUM_NEW - 1) / (whole - figures["ttft_s"])
    seconds = _median(lambda run: runner.generate(prompts(16, run), NUM_NEW), first_run=1)
    figures["batch_tok_s"] = 16 * NUM_NEW / seconds
    figures["anon_gib"] = _anonymous_memory() / 2**30
    token_ids = prompts(1, 0)[0]
    expected = Transformers(model, "float32").logits(token_ids)
    figures["logit_gap"] = float(np.abs(runner.logits(token_ids) - expected).mean())
    figures["logit_std"] = float(expected.std())
    return figures


def _median(work: Callable[[int], None], *, first_run: int) -> float:
    seconds = []
    for run in range(first_run, first_run + 3):
        begin = time.perf_counter()
        work(run)
        seconds.append(time.perf_counter() - begin)
    return statistics.median(seconds)


def _anonymous_memory() -> int:
    status = Path("/proc/self/status").read_text(encoding="utf-8")
    return 1024 * int(status.partition("RssAnon:")[2].split()[0])


def run(engine: str, model: Path) -> dict[str, Any]:
    """Measure one engine in a process of its own."""
    command = [sys.executable, __file__, "--child", engine, "--started", str(time.time())]
    output = subprocess.run([*command, str(model)], check=True, capture_output=True, text=True)
    figures: dict[str, Any] = json.loads(output.stdout.splitlines()[-1])
    return figures


def main() -> None:
    """Alternate the engines, print the medians as Markdown."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("models", nargs="*", default=["S", "M"])
    parser.add_argument("--folder", type=Path, default=Path("bench-models"))
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--child", choices=ENGINES, help=argparse.SUPPRESS)
    parser.add_argument("--started", type=float, default=0.0, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.child:
        print(json.dumps(measure(arguments.child, Path(arguments.models[0]), arguments.started)))
        return
    columns = ("start_s", "ttft_s", "single_tok_s", "batch_tok_s", "anon_gib", "logit_gap")
    print("| model | engine | " + " | ".join(columns) + " |\n" + "|---" * (len(columns) + 2) + "|")
    for name in arguments.models:
        rounds: dict[str, list[dict[str, Any]]] = {engine: [] for engine in ENGINES}
        for _ in range(arguments.rounds):
            for engine in ENGINES:
                rounds[engine].append(run(engine, arguments.folder / name))
        for engine, figures in rounds.items():
            medians = [statistics.median(one[column] for one in figures) for column in columns]
            cells = " | ".join(f"{median:.3g}" for median in medians)
            print(f"| {name} | {engine} | {cells} |", flush=True)


if __name__ == "__main__":
    main()
