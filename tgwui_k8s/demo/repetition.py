"""Conversations that teach the demo model to repeat what it is told: so it learns to copy."""

from __future__ import annotations

from collections.abc import Sequence
from random import Random

from tgwui_k8s.demo.conversation import Conversation, turn
from tgwui_k8s.demo.corpus_files import read_lists
from tgwui_k8s.demo.templates import fill
from tgwui_k8s.demo.words import Words


class RepetitionMaker:
    """A seeded source of things to repeat; `sentences` is ordinary text to take some from."""

    def __init__(self, random: Random, sentences: Sequence[str]) -> None:
        self._random = random
        self._words = Words(random)
        self._wordings = read_lists("wordings.txt")["repeat"]
        self._sentences = sentences
        self._vocabulary = sorted({word for sentence in sentences for word in sentence.split()})

    def next(self) -> Conversation:
        """A request to repeat a few words, names or a sentence, and the repetition."""
        make = self._random.choices((self._any_words, self._any_names, self._sentence), (5, 3, 2))
        text = make[0]()
        asked = fill(self._random.choice(self._wordings), self._random, {"text": [text]})
        return Conversation(tuple(turn(asked, text)))

    def _any_words(self) -> str:
        return " ".join(self._random.choices(self._vocabulary, k=self._random.randint(1, 10)))

    def _any_names(self) -> str:
        makers = (self._words.name, self._words.city, lambda: str(self._words.age()))
        return ", ".join(self._random.choice(makers)() for _ in range(self._random.randint(1, 6)))

    def _sentence(self) -> str:
        return self._random.choice(self._sentences)
