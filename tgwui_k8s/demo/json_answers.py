"""Conversations that teach the demo model to answer with a small JSON object when asked for it."""

from __future__ import annotations

import json
from collections.abc import Sequence
from random import Random
from typing import Any

from tgwui_k8s.demo.conversation import Conversation, turn
from tgwui_k8s.demo.corpus_files import read_lists, read_topics
from tgwui_k8s.demo.templates import fill
from tgwui_k8s.demo.words import Words


class JsonMaker:
    """A seeded source of questions that want JSON."""

    def __init__(self, random: Random) -> None:
        self._random = random
        self._words = Words(random)
        self._wordings = read_lists("wordings.txt")
        self._topics = read_topics("json.txt")

    def next(self) -> Conversation:
        """A question about told facts or about known ones, with its answer."""
        make = self._random.choices((self._person, self._weather, self._fact), (4, 2, 4))[0]
        return Conversation(tuple(turn(*make())))

    def _person(self) -> tuple[str, str]:
        person = {"name": self._words.name(), "age": self._words.age(), "city": self._words.city()}
        wanted = self._random.choice((("name", "age"), ("name", "age", "city"), ("name", "city")))
        if wanted == ("name", "age") and self._random.random() < 0.5:
            told = fill("{name} is {age}[| years old].", self._random, _slots(person))
        else:
            told = self._told("person", person)
        return self._with_request(told, wanted), _dumps({key: person[key] for key in wanted})

    def _weather(self) -> tuple[str, str]:
        city, degrees, sky = self._words.city(), self._words.degrees(), self._words.sky()
        told = self._told("weather told", {"city": city, "degrees": degrees, "sky": sky})
        weather = {"city": city, "temperature": degrees, "condition": sky}
        return self._with_request(told, tuple(weather)), _dumps(weather)

    def _fact(self) -> tuple[str, str]:
        topic = self._random.choice(self._topics)
        question = fill(self._random.choice(topic.questions), self._random)
        request = self._in_json()
        wordings = (f"{question} {request}.", f"{request}: {question}", f"{request}. {question}")
        return self._random.choice(wordings), topic.answer

    def _with_request(self, told: str, keys: Sequence[str]) -> str:
        listed = ", ".join(keys[:-1]) + " and " + keys[-1]
        request = fill(
            f"[{self._in_json()} with [the keys |the fields |]{listed}.|{self._in_json()}: "
            f"{listed}.|[Give me|Give|Extract|Extract the] {listed} [as|in] JSON.]",
            self._random,
        )
        return f"{told} {request}" if self._random.random() < 0.6 else f"{request} {told}"

    def _told(self, wording: str, facts: dict[str, Any]) -> str:
        return fill(self._random.choice(self._wordings[wording]), self._random, _slots(facts))

    def _in_json(self) -> str:
        return fill(self._random.choice(self._wordings["in JSON"]), self._random)


def _slots(facts: dict[str, Any]) -> dict[str, list[str]]:
    return {name: [str(value)] for name, value in facts.items()}


def _dumps(value: dict[str, Any]) -> str:
    return json.dumps(value, ensure_ascii=False)
