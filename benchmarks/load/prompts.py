"""Prompts for a run: words drawn with a seed, or lines of a file."""

from __future__ import annotations

import json
import random
from pathlib import Path

_WORDS = """
the of and to in is that it was for on are with as they at be this from have or by one had not but
what all were when we there can an your which their said if do will each about how up out them then
she many some so these would other into has more her two like him see time could no make than first
been its who now people my made over did down only way find use may water long little very after
words called just where most know
"""


def random_prompts(number: int, num_words: int, seed: int, num_shared_words: int = 0) -> list[str]:
    """Texts of about `num_words` tokens in an English vocabulary (short, frequent words).

    They differ from the first word on, so that no prefix cache helps, but for the
    `num_shared_words` that all begin with.
    """
    source, words = random.Random(seed), _WORDS.split()
    shared = source.choices(words, k=min(num_shared_words, num_words))
    rest = num_words - len(shared)
    return [
        " ".join([*shared, *_distinct(index, source.choices(words, k=rest))])
        for index in range(number)
    ]


def file_prompts(path: Path) -> list[str]:
    """One prompt a line: plain text, or a JSON object with `prompt`. Raises `ValueError`."""
    prompts = []
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
        if line.startswith("{"):
            try:
                prompts.append(str(json.loads(line)["prompt"]))
            except (ValueError, LookupError):
                raise ValueError(f"{path}, line {number}: no JSON object with 'prompt'") from None
        elif line:
            prompts.append(line)
    if not prompts:
        raise ValueError(f"{path} holds no prompt")
    return prompts


def _distinct(index: int, words: list[str]) -> list[str]:
    """The words with a number in place of the first."""
    return [str(index), *words[1:]] if words else words
