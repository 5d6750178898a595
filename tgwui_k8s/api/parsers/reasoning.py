"""Reasoning apart from the answer: `<think> … </think>` and its kin."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Protocol

from tgwui_k8s.api.parsers.channels import CHANNEL, MESSAGE, Channels
from tgwui_k8s.api.parsers.events import Event, Parser, ReasoningEvent, join
from tgwui_k8s.api.parsers.notations import Tag
from tgwui_k8s.api.parsers.scanning import find_first, num_undecided


class ReasoningStyle(Protocol):
    """How a family of models sets its reasoning apart. Rules are Lark expressions."""

    @property
    def marks(self) -> tuple[str, ...]:
        """What the parser must see, special tokens or not."""
        ...

    @property
    def closing(self) -> str:
        """What the reasoning ends with."""
        ...

    def is_open(self, prompt: str) -> bool:
        """True where the prompt ends with the beginning of the reasoning."""
        ...

    def make_parser(self, answer: Parser, *, is_open: bool) -> Parser:
        """A parser that leaves what is no reasoning to `answer`."""
        ...

    def opening_rule(self, tag: Tag) -> str:
        """What the reasoning begins with."""
        ...

    def between_rule(self, tag: Tag) -> str:
        """What stands between reasoning and answer."""
        ...

    def answer_rule(self, tag: Tag, text: str) -> str:
        """The answer whose text is `text`."""
        ...

    def free_rule(self, tag: Tag) -> str | None:
        """Any answer, where it stands in a frame; None where an answer is text and nothing else."""
        ...


@dataclass(frozen=True, slots=True)
class ReasoningTags:
    """Reasoning between two tags, the answer behind them. See `ReasoningStyle`."""

    opening: str
    closing: str
    label: str = ""
    """What follows the opening tag and is no reasoning."""

    @property
    def marks(self) -> tuple[str, ...]:
        return self.opening, self.closing

    @property
    def beginning(self) -> str:
        """Opening tag and label."""
        return self.opening + self.label

    def is_open(self, prompt: str) -> bool:
        return prompt.rstrip().endswith(self.beginning)

    def make_parser(self, answer: Parser, *, is_open: bool) -> Parser:
        return ReasoningParser(self, answer, is_open=is_open)

    def opening_rule(self, tag: Tag) -> str:
        return f"{tag(self.opening)} {json.dumps(self.label)}" if self.label else tag(self.opening)

    def between_rule(self, tag: Tag) -> str:
        return r"(/[ \t\r\n]{1,4}/)?"

    def answer_rule(self, tag: Tag, text: str) -> str:
        return text

    def free_rule(self, tag: Tag) -> str | None:
        return None


REASONING_TAGS = (
    ReasoningTags("<think>", "</think>"),
    ReasoningTags("[THINK]", "[/THINK]"),
    ReasoningTags("<reasoning>", "</reasoning>"),
    ReasoningTags("<|channel>", "<channel|>", label="thought"),
)


def reasoning_style(template: str) -> ReasoningStyle | None:
    """The style that a chat template speaks of; None: the model does not reason aloud."""
    if CHANNEL in template and MESSAGE in template:
        return Channels()
    for tags in REASONING_TAGS:
        if tags.opening in template and tags.closing in template:
            return tags
    return None


class ReasoningParser:
    """Reasoning until the closing tag, then all to the `answer` parser.

    An answer that does not begin with the opening tag has no reasoning; white space around the
    reasoning belongs to nobody.
    """

    def __init__(self, tags: ReasoningTags, answer: Parser, *, is_open: bool) -> None:
        """`is_open`: the prompt ends with the opening tag."""
        self._tags = tags
        self._answer = answer
        self._buffer = ""
        self._step = self._reason if is_open else self._begin
        self._has_reasoned = False

    def feed(self, text: str) -> list[Event]:
        """Take text; give what is certain."""
        self._buffer += text
        events: list[Event] = []
        step = None
        while step != self._step:
            step = self._step
            join(events, step())
        return events

    def finish(self) -> list[Event]:
        """Reasoning that was cut off stays reasoning."""
        events: list[Event] = []
        if self._step == self._reason:
            events = self._reasoning(self._buffer.rstrip())
        elif self._buffer:
            events = self._answer.feed(self._buffer)
        self._buffer = ""
        join(events, self._answer.finish())
        return events

    def _begin(self) -> list[Event]:
        text = self._buffer.lstrip()
        if text.startswith(self._tags.beginning):
            self._buffer = text[len(self._tags.beginning) :]
            self._step = self._reason
        elif not self._tags.beginning.startswith(text):
            self._step = self._pass_on
        return []

    def _reason(self) -> list[Event]:
        found = find_first(self._buffer, (self._tags.closing,))
        if found is None:
            certain = len(self._buffer) - num_undecided(self._buffer, (self._tags.closing,))
            certain = len(self._buffer[:certain].rstrip())
            reasoning, self._buffer = self._buffer[:certain], self._buffer[certain:]
            return self._reasoning(reasoning)
        place, mark = found
        reasoning, self._buffer = self._buffer[:place], self._buffer[place + len(mark) :]
        self._step = self._pause
        return self._reasoning(reasoning.rstrip())

    def _pause(self) -> list[Event]:
        self._buffer = self._buffer.lstrip()
        if self._buffer:
            self._step = self._pass_on
        return []

    def _pass_on(self) -> list[Event]:
        text, self._buffer = self._buffer, ""
        return self._answer.feed(text)

    def _reasoning(self, text: str) -> list[Event]:
        if not self._has_reasoned:
            text = text.lstrip()
        if not text:
            return []
        self._has_reasoned = True
        return [ReasoningEvent(text)]
