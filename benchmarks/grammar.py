"""What grammars cost: compiling, masks per step, and what a batch of constrained rows notices.

    python benchmarks/models.py S && python benchmarks/grammar.py bench-models/S

The first table needs no model: a vocabulary of 128,000 pieces, several grammars, rows that follow
their masks at random. The second steps the model with 16 rows, free and constrained in turn; the
share is the time spent on masks and grammars in the constrained steps. Medians, in milliseconds.
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
import string
import time
from pathlib import Path
from typing import Any

import numpy as np

from tgwui_k8s.contract import GenerationRequest, ModelInfo, SamplingRow
from tgwui_k8s.engine.core import EngineCore
from tgwui_k8s.engine.grammar import Grammars, GrammarState
from tgwui_k8s.engine.messages import EngineSettings
from tgwui_k8s.llm import LLM
from tgwui_k8s.sampling import SamplingParams

NUM_ROWS = 16
NUM_STEPS = 150
VOCAB_SIZE = 128_000

PERSON = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 40},
        "age": {"type": "integer", "minimum": 0, "maximum": 150},
        "mail": {"type": "string", "pattern": "^[a-z.]{3,20}@[a-z]{3,20}[.](com|org)$"},
        "tags": {"type": "array", "items": {"enum": ["red", "green", "blue"]}},
        "note": {"type": "string"},
    },
    "required": ["name", "age", "mail", "tags", "note"],
    "additionalProperties": False,
}
GRAMMARS: dict[str, dict[str, Any]] = {
    "any object": {"json_schema": {"type": "object"}},
    "schema": {"json_schema": {"type": "array", "items": PERSON, "minItems": 1000}},
    "regex": {"lark_grammar": "start: /([a-z]{2,9} [0-9]{1,5}[,;] ?){1000}/"},
    "free text": {"lark_grammar": "start: /(?s:.*)/"},
}

ENDLESS = ("schema", "regex", "free text")
"""Grammars that keep all rows going."""


def grammar_text(name: str) -> str:
    return json.dumps({"grammars": [GRAMMARS[name]]})


def large_tokenizer() -> bytes:
    """A byte-level vocabulary of random words, numbers and punctuation; no merges needed."""
    from loaders.fake import tokenizer_json  # noqa: TID251 - its bytes are a good beginning

    source = json.loads(tokenizer_json())
    letters, chance = string.ascii_letters, random.Random(0)
    pieces = dict.fromkeys(source["model"]["vocab"])
    while len(pieces) < VOCAB_SIZE:
        word = "".join(chance.choices(letters, k=chance.randint(2, 8)))
        pieces[chance.choice(["Ġ", "Ġ", "", '"', '":', "{", ","]) + word] = None
    added = {token["id"] for token in source["added_tokens"]}
    free = (number for number in range(VOCAB_SIZE + len(added)) if number not in added)
    source["model"]["vocab"] = dict(zip(pieces, free, strict=False))
    return json.dumps(source).encode()


def median_ms(seconds: list[float]) -> float:
    return statistics.median(seconds) * 1e3


def measure_library() -> None:
    """Compiling and masks over a large vocabulary."""
    info = ModelInfo(
        loader="none",
        architecture="none",
        dtype="float32",
        device="cpu",
        max_model_len=1,
        vocab_size=VOCAB_SIZE,
        eos_token_ids=(256,),
    )
    source = large_tokenizer()
    grammars = Grammars(info, lambda: source)
    start = time.perf_counter()
    grammars.compile(grammar_text("free text"))
    print(f"first grammar, tokenizer included: {(time.perf_counter() - start) * 1e3:.0f} ms")
    print("\n| grammar | compile | again | mask, 1 row | masks, 16 rows | slowest | take |")
    print("|---|---:|---:|---:|---:|---:|---:|")
    for name in GRAMMARS:
        text = grammar_text(name) + " "
        start = time.perf_counter()
        grammars.compile(text)
        compiled = time.perf_counter() - start
        start = time.perf_counter()
        states = [grammars.compile(text) for _ in range(NUM_ROWS)]
        again = (time.perf_counter() - start) / NUM_ROWS
        one, _ = walk(grammars, [grammars.compile(text)])
        masks, takes = walk(grammars, states)
        print(
            f"| {name} | {compiled * 1e3:.1f} | {again * 1e3:.2f} | {median_ms(one):.2f} "
            f"| {median_ms(masks):.2f} | {max(masks) * 1e3:.1f} | {median_ms(takes):.2f} |"
        )


def walk(grammars: Grammars, states: list[GrammarState]) -> tuple[list[float], list[float]]:
    """Seconds per step for all masks, and for all tokens, of rows that follow them at random."""
    chance = np.random.default_rng(0)
    rows = [SamplingRow(SamplingParams(max_tokens=1), (256,), (), []) for _ in states]
    masks, takes = [], []
    for _ in range(NUM_STEPS):
        start = time.perf_counter()
        grammars.set_masks(states, rows)
        masks.append(time.perf_counter() - start)
        chosen = [int(chance.choice(np.flatnonzero(row.allowed_token_ids))) for row in rows]
        start = time.perf_counter()
        for state, token in zip(states, chosen, strict=True):
            if not state.is_complete:
                state.take([token])
        takes.append(time.perf_counter() - start)
    return masks, takes


class TimedGrammars(Grammars):
    """Knows how long masks have taken."""

    seconds = 0.0

    def set_masks(self, states: Any, rows: Any) -> None:
        start = time.perf_counter()
        super().set_masks(states, rows)
        self.seconds += time.perf_counter() - start


def measure_model(model: Path) -> None:
    """Steps of 16 rows, free and constrained in turn."""
    llm = LLM(str(model.resolve()))
    runner, info = llm.core.runner, llm.info
    source = info.tokenizer_json or (model / "tokenizer.json").read_bytes()
    print("\n| 16 rows | ms per step | of it masks | share |\n|---|---:|---:|---:|")
    times: dict[str, list[float]] = {name: [] for name in ("free", *ENDLESS)}
    masks: dict[str, list[float]] = {name: [] for name in times}
    for round_number in range(2):
        for name in times:
            grammars = TimedGrammars(info, lambda: source)
            core = EngineCore(
                runner,
                EngineSettings(max_num_seqs=NUM_ROWS, max_waiting_requests=NUM_ROWS),
                grammars=grammars,
            )
            text = "" if name == "free" else grammar_text(name)
            for row in range(NUM_ROWS):
                core.add_request(request(f"{round_number}-{row}", text, info.vocab_size))
            run(core, grammars, times[name], masks[name])
    for name, seconds in times.items():
        spent, step = median_ms(masks[name]), median_ms(seconds)
        print(f"| {name} | {step:.1f} | {spent:.2f} | {spent / step:.1%} |")
    llm.close()


def request(name: str, grammar: str, vocab_size: int) -> GenerationRequest:
    source = random.Random(name)
    prompt = tuple(source.randrange(3, vocab_size) for _ in range(128))
    params = SamplingParams(max_tokens=60, seed=source.randrange(2**32))
    return GenerationRequest(
        request_id=name, prompt_token_ids=prompt, params=params, grammar=grammar
    )


def run(core: EngineCore, grammars: TimedGrammars, times: list[float], masks: list[float]) -> None:
    """Step to the end; note the steps in which all rows decode."""
    while core.has_work:
        tokens, spent, start = core.stats.generation_tokens, grammars.seconds, time.perf_counter()
        core.step()
        seconds = time.perf_counter() - start
        if core.stats.generation_tokens - tokens == NUM_ROWS:
            times.append(seconds)
            masks.append(grammars.seconds - spent)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model", type=Path, nargs="?")
    arguments = parser.parse_args()
    measure_library()
    if arguments.model is not None:
        measure_model(arguments.model)


if __name__ == "__main__":
    main()
