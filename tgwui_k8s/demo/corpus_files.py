"""Readers of the text in `corpus/`; each file says its own format in its first line."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from tgwui_k8s.demo.templates import Slots

CORPUS = Path(__file__).resolve().parent / "corpus"


@dataclass(frozen=True)
class Topic:
    """Templates of one question, and the answer to it."""

    questions: tuple[str, ...]
    answer: str


@dataclass(frozen=True)
class Flag:
    """A command-line flag; `default` is '-' where there is none to speak of."""

    name: str
    default: str
    purpose: str


@dataclass(frozen=True)
class Recipe:
    """Templates of the steps; those that begin with '?' may be left out."""

    kind: str
    steps: tuple[str, ...]
    closing: str


def read_topics(name: str) -> list[Topic]:
    """Questions and answers of a file, in its order."""
    topics: list[Topic] = []
    questions: list[str] = []
    for line in _lines(name):
        mark, text = line.split(": ", 1)
        if mark == "Q":
            questions.append(text)
        else:
            topics.append(Topic(tuple(questions), text))
            questions = []
    return topics


def read_flags() -> list[Flag]:
    """The table of flags."""
    return [Flag(*line.split(" | ")) for line in _lines("flags.txt")]


def read_texts(name: str) -> list[str]:
    """Templates of whole texts."""
    lines = [line for line in _lines(name) if not line.startswith("@")]
    return "\n".join(lines).split("\n===\n")


def read_lists(name: str) -> dict[str, list[str]]:
    """Lists of lines by their title."""
    lists: dict[str, list[str]] = {}
    entries: list[str] = []
    for line in _lines(name):
        if line.startswith("== "):
            entries = lists.setdefault(line.removeprefix("== "), [])
        elif not line.startswith("@"):
            entries.append(line)
    return lists


def read_recipes() -> list[Recipe]:
    """Every kind of recipe."""
    return [
        Recipe(kind, tuple(steps[:-1]), steps[-1].removeprefix("! "))
        for kind, steps in read_lists("recipes.txt").items()
    ]


def read_slots(name: str) -> Slots:
    """Choices for the slots of a file's templates."""
    slots = {}
    for line in _lines(name):
        if line.startswith("@"):
            slot, choices = line[1:].split(": ", 1)
            slots[slot] = choices.split(" | ")
    return slots


def _lines(name: str) -> list[str]:
    """Lines that are neither empty nor comments."""
    text = (CORPUS / name).read_text(encoding="utf-8")
    return [line for line in text.splitlines() if line and not line.startswith("#")]
