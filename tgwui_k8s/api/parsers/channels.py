"""Answers in channels, as gpt-oss writes them (OpenAI's "harmony" format).

    <|channel|>analysis<|message|>…<|end|><|start|>assistant<|channel|>final<|message|>…<|return|>
    <|channel|>commentary to=functions.NAME <|constrain|>json<|message|>{…}<|call|>

The channel `analysis` is reasoning, `final` the answer, `commentary` a word beforehand or, with a
recipient, a call.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from tgwui_k8s.api.parsers.events import Event, Parser, ReasoningEvent, join
from tgwui_k8s.api.parsers.notations import Tag
from tgwui_k8s.api.parsers.scanning import find_first, num_undecided

CHANNEL, MESSAGE, CONSTRAIN = "<|channel|>", "<|message|>", "<|constrain|>"
START, END = "<|start|>", "<|end|>"
_ENDS = (END, "<|return|>", "<|call|>")

CALL_MARK = f"{CHANNEL}commentary to=functions."
"""How `ChannelParser` hands a call on, however the model has ordered the words of its header."""

_RECIPIENT = re.compile(r"\bto=functions\.([^\s<]+)")
_CHANNEL_NAME = re.compile(rf"{re.escape(CHANNEL)}\s*(\w+)")


@dataclass(frozen=True, slots=True)
class Channels:
    """See `reasoning.ReasoningStyle`."""

    marks: tuple[str, ...] = (CHANNEL, MESSAGE, CONSTRAIN, START, END)
    closing: str = END

    def is_open(self, prompt: str) -> bool:
        """True where the prompt ends in the midst of the reasoning; no template does that."""
        return False

    def make_parser(self, answer: Parser, *, is_open: bool) -> Parser:
        """A parser that hands text and calls on to `answer`."""
        return ChannelParser(answer)

    def opening_rule(self, tag: Tag) -> str:
        """What the reasoning begins with."""
        return f'{tag(CHANNEL)} "analysis" {tag(MESSAGE)}'

    def between_rule(self, tag: Tag) -> str:
        """What stands between reasoning and answer."""
        return f'{tag(START)} "assistant"'

    def answer_rule(self, tag: Tag, text: str) -> str:
        """The answer whose text is `text`."""
        return f'({tag(CHANNEL)} "final" {tag(MESSAGE)} {text})'

    def free_rule(self, tag: Tag) -> str | None:
        """Any answer: text, or a call of whatever there is."""
        call = f'"commentary" /[^<]*/ ({tag(CONSTRAIN)} /[a-z]*/)?'
        return f'({tag(CHANNEL)} ("final" | {call}) {tag(MESSAGE)} /(?s:.*)/)'


class ChannelParser:
    """Takes the messages of an answer apart; a header counts when it is complete.

    What does not begin with a header is text.
    """

    def __init__(self, answer: Parser) -> None:
        self._answer = answer
        self._buffer = ""
        self._step = self._begin
        self._has_text = False

    def feed(self, text: str) -> list[Event]:
        """Take text; give what is certain."""
        self._buffer += text
        events: list[Event] = []
        step, length = None, -1
        while (step, length) != (self._step, len(self._buffer)):
            step, length = self._step, len(self._buffer)
            join(events, step())
        return events

    def finish(self) -> list[Event]:
        """What was held back as the beginning of a mark is text after all; half a header is not."""
        events: list[Event] = []
        if self._step == self._reason and self._buffer:
            events = [ReasoningEvent(self._buffer)]
        elif self._step in (self._begin, self._speak):
            events = self._answer.feed(self._buffer)
        self._buffer = ""
        join(events, self._answer.finish())
        return events

    def _begin(self) -> list[Event]:
        """Before the first header, which may be missing."""
        text = self._buffer.lstrip()
        beginnings = (CHANNEL, START, "to=functions.")
        if text.startswith(beginnings):
            self._step = self._head
        elif not any(beginning.startswith(text) for beginning in beginnings):
            self._step = self._speak
        return []

    def _head(self) -> list[Event]:
        found = find_first(self._buffer, (MESSAGE,))
        if found is None:
            return []
        header, self._buffer = self._buffer[: found[0]], self._buffer[found[0] + len(MESSAGE) :]
        recipient = _RECIPIENT.search(header)
        channel = _CHANNEL_NAME.search(header)
        if recipient is not None:
            self._step = self._speak
            return self._answer.feed(f"{CALL_MARK}{recipient.group(1)}{MESSAGE}")
        if channel is not None and channel.group(1) == "analysis":
            self._step = self._reason
            return []
        self._step = self._speak
        if not self._has_text:
            return []
        return self._answer.feed("\n\n")

    def _reason(self) -> list[Event]:
        text = self._take_message()
        return [ReasoningEvent(text)] if text else []

    def _speak(self) -> list[Event]:
        text = self._take_message()
        self._has_text = self._has_text or bool(text)
        return self._answer.feed(text) if text else []

    def _take_message(self) -> str:
        """What is certain of the message under way; behind its end comes a header."""
        marks = (*_ENDS, START)
        found = find_first(self._buffer, marks)
        if found is None:
            certain = len(self._buffer) - num_undecided(self._buffer, marks)
            text, self._buffer = self._buffer[:certain], self._buffer[certain:]
            return text
        place, mark = found
        text, self._buffer = self._buffer[:place], self._buffer[place + len(mark) :]
        self._step = self._head
        return text
