"""Variety from text: `[a|b]` is a choice, `{name}` a slot that is filled once per text."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from random import Random

Slots = Mapping[str, Sequence[str]]

_INNERMOST_CHOICE = re.compile(r"\[([^\[\]|]*\|[^\[\]]*)\]")
_SLOT = re.compile(r"\{(\w+)\}")
_SKEW = 0.5


def fill(template: str, random: Random, slots: Slots | None = None) -> str:
    """One text of the template, every choice equally likely: for what the model reads."""
    return _fill(template, random, slots or {}, skew=1.0)


def fill_skewed(template: str, random: Random, slots: Slots | None = None) -> str:
    """One text of the template, earlier choices likelier: for what the model learns to write.

    Each choice is half as likely as the one before it, so that greedy decoding meets no near
    ties, which would fall differently in bfloat16 and in float32.
    """
    return _fill(template, random, slots or {}, skew=_SKEW)


def _fill(template: str, random: Random, slots: Slots, skew: float) -> str:
    def pick(options: Sequence[str]) -> str:
        weights = [skew**rank for rank in range(len(options))]
        return random.choices(options, weights)[0]

    text = template
    while (chosen := _INNERMOST_CHOICE.sub(lambda m: pick(m[1].split("|")), text)) != text:
        text = chosen
    values = {name: pick(slots[name]) for name in dict.fromkeys(_SLOT.findall(text))}
    return _SLOT.sub(lambda match: values[match[1]], text)
