"""Names, cities and readings for conversations that teach copying.

About half of them are invented anew each time, so that the model learns to copy what stands in
the conversation instead of remembering it.
"""

from __future__ import annotations

from random import Random

from tgwui_k8s.demo.corpus_files import read_slots


class Words:
    """A seeded source of words."""

    def __init__(self, random: Random) -> None:
        self._random = random
        self._lists = read_slots("words.txt")

    def city(self) -> str:
        """A real or an invented city."""
        return self._real_or_invented("city")

    def name(self) -> str:
        """A real or an invented first name."""
        return self._real_or_invented("name")

    def sky(self) -> str:
        """What the weather is like."""
        return self._random.choice(self._lists["sky"])

    def degrees(self) -> int:
        """A temperature in Celsius."""
        return self._random.randint(-9, 39)

    def age(self) -> int:
        """A person's age in years."""
        return self._random.randint(2, 99)

    def _real_or_invented(self, list_name: str) -> str:
        if self._random.random() < 0.5:
            return self._random.choice(self._lists[list_name])
        syllables = self._random.choices(self._lists["syllable"], k=self._random.choice((2, 2, 3)))
        invented = "".join(syllables).title()
        if self._random.random() < 0.1:
            return f"{invented} {self._random.choice(self._lists['syllable']).title()}"
        return invented
