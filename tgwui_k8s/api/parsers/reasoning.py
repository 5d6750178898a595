"""Reasoning apart from the answer: `<think> … </think>` and its kin."""

from __future__ import annotations

from dataclasses import dataclass

from tgwui_k8s.api.parsers.events import Event, Parser, ReasoningEvent, join
from tgwui_k8s.api.parsers.scanning import find_first, num_undecided


@dataclass(frozen=True, slots=True)
class ReasoningTags:
    """What a family of models writes around its reasoning."""

    opening: str
    closing: str


REASONING_TAGS = (
    ReasoningTags("<think>", "</think>"),
    ReasoningTags("[THINK]", "[/THINK]"),
    ReasoningTags("<reasoning>", "</reasoning>"),
)


def reasoning_tags(template: str) -> ReasoningTags | None:
    """The tags that a chat template speaks of; None: the model does not reason aloud."""
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
        if text.startswith(self._tags.opening):
            self._buffer = text[len(self._tags.opening) :]
            self._step = self._reason
        elif not self._tags.opening.startswith(text):
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
