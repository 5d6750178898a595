"""Many chats with one long system prompt: what the prefix cache saves until the first token.

    make bench-models
    python -m benchmarks.prefix_reuse --model bench-models/S --chats 64 --system-words 2000

Over HTTP, one chat after the other. "Shared": all chats begin with the same system prompt. "Own":
each has a system prompt of its own of the same length, so that every block must be computed. The
hit rate is that of the server's metrics over all shared chats, the first one included. A word is a
token or two, by the model's tokenizer; the table says how many there were.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import urllib.request
from collections.abc import Sequence
from typing import NamedTuple

import uvloop

from benchmarks.load.client import Target, first_model, stream
from benchmarks.load.http import Origin
from benchmarks.load.machine import conditions
from benchmarks.load.prompts import random_prompts
from benchmarks.load.server import Server, ServerFailedError
from benchmarks.startup import model_flag

QUESTION_WORDS = 20


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure both and print a table; 1 when a request failed."""
    parser = argparse.ArgumentParser(
        prog="prefix_reuse",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--model", default="bench-models/S", metavar="NAME|PATH")
    parser.add_argument("--chats", type=int, default=64, metavar="N")
    parser.add_argument("--own-chats", type=int, default=16, metavar="N")
    parser.add_argument("--system-words", type=int, default=2000, metavar="N")
    parser.add_argument("--loader", default="Native", help="the folder may hold other formats too")
    parser.add_argument("--flag", action="append", default=[], help="for serve, as --flag=--x=y")
    options = parser.parse_args(arguments)
    where = conditions()
    flags = ["--model", model_flag(options.model), "--loader", options.loader, *options.flag]
    length = options.system_words + QUESTION_WORDS
    own = random_prompts(options.own_chats, length, seed=1)
    shared = random_prompts(options.chats, length, 2, num_shared_words=options.system_words)
    try:
        with Server(flags) as server:
            server.wait_for("/health/ready")
            uvloop.run(first_tokens(server.url, random_prompts(1, length, seed=0)))
            own_answers = uvloop.run(first_tokens(server.url, own))
            before = cache_figures(server.url)
            shared_answers = uvloop.run(first_tokens(server.url, shared))
            after = cache_figures(server.url)
    except ServerFailedError as error:
        print(f"prefix_reuse: {error}", file=sys.stderr)
        return 1
    hits, queries = (later - earlier for later, earlier in zip(after, before, strict=True))
    print(table(own_answers, shared_answers, hits / queries))
    print(f"\n{where}")
    return 0


class Answer(NamedTuple):
    """Of one chat."""

    seconds: float
    """Until the first token."""
    num_prompt_tokens: int


async def first_tokens(url: str, prompts: Sequence[str]) -> list[Answer]:
    """Ask one after the other."""
    origin = Origin.parse(url)
    target = Target(
        origin, await first_model(origin, {}), max_tokens=2, fields={"ignore_eos": True}
    )
    answers = []
    for prompt in prompts:
        recording = await stream(target, prompt)
        if recording.error is not None or recording.first is None:
            raise ServerFailedError(f"a chat failed: {recording.error}")
        answers.append(Answer(recording.first - recording.started, recording.num_prompt_tokens))
    return answers


def cache_figures(url: str) -> tuple[float, float]:
    """Prompt tokens found and looked up since the server's start, from its metrics."""
    with urllib.request.urlopen(f"{url}/metrics", timeout=30) as answer:
        lines = answer.read().decode().splitlines()
    values = [
        sum(float(line.rpartition(" ")[2]) for line in lines if line.startswith(f"{name}{{"))
        for name in ("tgwui_prefix_cache_hits_total", "tgwui_prefix_cache_queries_total")
    ]
    return values[0], values[1]


def table(own: Sequence[Answer], shared: Sequence[Answer], hit_rate: float) -> str:
    """TTFT of both as Markdown."""
    rows = {
        "own system prompt": own,
        "shared, first chat": shared[:1],
        f"shared, the other {len(shared) - 1}": shared[1:],
    }
    base = statistics.median(answer.seconds for answer in own)
    lines = [
        "| | prompt tokens | TTFT p50 | slowest | faster than own |",
        "|---|---:|---:|---:|---:|",
    ]
    for name, answers in rows.items():
        seconds = [answer.seconds for answer in answers]
        median = statistics.median(seconds)
        tokens = statistics.median(answer.num_prompt_tokens for answer in answers)
        lines.append(
            f"| {name} | {tokens:.0f} | {median * 1e3:.0f} ms | {max(seconds) * 1e3:.0f} ms "
            f"| {base / median:.1f} × |"
        )
    return "\n".join(lines) + f"\n\nHit rate over the shared chats: {hit_rate:.1%}"


if __name__ == "__main__":
    sys.exit(main())
