"""What guessing by prompt lookup gains where an answer quotes its prompt, and costs where not.

    make bench-models
    python -m benchmarks.speculative --model bench-models/M

The weights are random, so the answers are dictated: a sampler does its usual work and then takes
the next token of a text that is known. Speed is the model's, and what can be guessed is the text's.

- edit: the prompt holds a module of the standard library, the answer is the module with one name
  changed, as an assistant for code would give it back.
- fresh: the same prompt, and an answer from another module: what repeats itself by chance.
- noise: the answer is random tokens: nothing repeats itself, so this is the price.

Runs with and without guessing alternate; medians of `--rounds`.
"""

from __future__ import annotations

import argparse
import random
import statistics
import sys
import sysconfig
import time
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from benchmarks.load.machine import conditions
from tgwui_k8s.contract import Logits, SampledToken, SamplingRow
from tgwui_k8s.engine.sampler import NumpySampler
from tgwui_k8s.llm import LLM
from tgwui_k8s.sampling import SamplingParams

MODULE, OTHER_MODULE = "textwrap.py", "calendar.py"
OLD_NAME, NEW_NAME = "drop_whitespace", "strip_blanks"


class DictatingSampler(NumpySampler):
    """Samples as usual, then says what the script says."""

    def __init__(self) -> None:
        super().__init__()
        self.script: Sequence[int] = ()

    def sample(
        self,
        logits: Logits,
        rows: Sequence[SamplingRow],
        indices: Sequence[int],
        guidance_indices: Sequence[int | None],
    ) -> list[SampledToken]:
        """Token i of the script for every row that has said i tokens."""
        super().sample(logits, rows, indices, guidance_indices)
        return [SampledToken(self.script[row.position]) for row in rows]


class Run(NamedTuple):
    """One measurement."""

    tokens_per_second: float
    num_steps: int
    num_drafts: int
    num_accepted: int


class Bench:
    """A model whose answers are dictated."""

    def __init__(self, model: str, loader: str) -> None:
        self.sampler = DictatingSampler()
        self.llm = LLM(str(Path(model).resolve()), loader=loader)
        self.llm.core.sampler = self.sampler

    def scripts(self, num_tokens: int) -> tuple[list[int], dict[str, list[int]]]:
        """The prompt, and the answers by name."""
        encode = self.llm.tokenizer.encode
        folder = Path(sysconfig.get_path("stdlib"))
        module = (folder / MODULE).read_text(encoding="utf-8")[:6000]
        other = (folder / OTHER_MODULE).read_text(encoding="utf-8")
        edited = module.replace(OLD_NAME, NEW_NAME)
        prompt = encode(f"Rename {OLD_NAME} to {NEW_NAME}:\n{module}\nThe new module:\n")
        noise = random.Random(0).choices(range(3, self.llm.info.vocab_size), k=num_tokens)
        answers = {"edit": encode(edited), "fresh": encode(other), "noise": noise}
        return prompt, {name: answer[:num_tokens] for name, answer in answers.items()}

    def run(self, prompt: list[int], script: list[int], streams: int, num_guessed: int) -> Run:
        """All streams at once, without their prefill."""
        self.sampler.script = script
        params = SamplingParams(
            max_tokens=len(script),
            temperature=0.0,
            ignore_eos=True,
            prompt_lookup_num_tokens=num_guessed,
        )
        # The first request leaves the prompt in the prefix cache for all others.
        first = SamplingParams(max_tokens=1, temperature=0.0, ignore_eos=True)
        self.llm.generate([prompt], first)
        before, begin = self.llm.core.stats, time.perf_counter()
        self.llm.generate([prompt] * streams, params)
        seconds, after = time.perf_counter() - begin, self.llm.core.stats
        return Run(
            streams * len(script) / seconds,
            after.num_steps - before.num_steps,
            after.num_draft_tokens - before.num_draft_tokens,
            after.num_accepted_tokens - before.num_accepted_tokens,
        )


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure and print a table."""
    parser = argparse.ArgumentParser(
        prog="speculative",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--model", default="bench-models/M", metavar="PATH")
    parser.add_argument("--loader", default="Native", help="the folder may hold other formats too")
    parser.add_argument("--tokens", type=int, default=256, help="of each answer")
    parser.add_argument("--guess", type=int, default=8, help="prompt_lookup_num_tokens")
    parser.add_argument("--streams", type=int, nargs="+", default=[1, 8], metavar="N")
    parser.add_argument("--rounds", type=int, default=3, metavar="N")
    options = parser.parse_args(arguments)
    where = conditions()
    bench = Bench(options.model, options.loader)
    prompt, scripts = bench.scripts(options.tokens)
    print("| answer | streams | tok/s | with guesses | gain | steps | guessed right |")
    print("|---|---:|---:|---:|---:|---:|---:|")
    for name, script in scripts.items():
        for streams in options.streams:
            runs: dict[int, list[Run]] = {0: [], options.guess: []}
            for _ in range(options.rounds):
                for num_guessed, done in runs.items():
                    done.append(bench.run(prompt, script, streams, num_guessed))
            print(row(name, streams, runs[0], runs[options.guess]), flush=True)
    bench.llm.close()
    print(f"\n{options.model}, {len(prompt)} prompt tokens, guesses of {options.guess}. {where}")
    return 0


def row(name: str, streams: int, plain: Sequence[Run], guessing: Sequence[Run]) -> str:
    """One line of the table."""
    speeds = [
        statistics.median(run.tokens_per_second for run in runs) for runs in (plain, guessing)
    ]
    last = guessing[-1]
    right = f"{last.num_accepted} of {last.num_drafts}"
    cells = (
        name, streams, f"{speeds[0]:.1f}", f"{speeds[1]:.1f}", f"{speeds[1] / speeds[0]:.2f} ×",
        f"{plain[-1].num_steps} → {last.num_steps}", right,
    )  # fmt: skip
    return f"| {' | '.join(map(str, cells))} |"


if __name__ == "__main__":
    sys.exit(main())
