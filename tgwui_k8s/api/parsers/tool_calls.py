"""Tool calls apart from text: looks for the marks of a family, and hands what follows to a body."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from tgwui_k8s.api.parsers.bodies import Body
from tgwui_k8s.api.parsers.events import Event, TextEvent, join
from tgwui_k8s.api.parsers.scanning import find_first, num_undecided


class ToolCallParser:
    """Text up to a mark, then a call, then text again.

    White space next to a call belongs to nobody. A call that is malformed from its beginning comes
    out as the text it was.
    """

    def __init__(
        self,
        make_body: Callable[[str], Body],
        marks: Sequence[str],
        *,
        silent_marks: Sequence[str] = (),
        at_start_only: bool = False,
    ) -> None:
        """`make_body` makes the body behind one of `marks`; `silent_marks` are left out.

        `at_start_only`: what is not a call from its first character is text.
        """
        self._make_body = make_body
        self._call_marks = tuple(marks)
        self._marks = (*marks, *silent_marks)
        self._at_start_only = at_start_only
        self._buffer = ""
        self._body: Body | None = None
        self._mark = ""
        self._raw = ""
        self._has_spoken = False
        self._is_plain = False
        self._after_call = False

    def feed(self, text: str) -> list[Event]:
        """Take text; give what is certain."""
        self._buffer += text
        events: list[Event] = []
        while self._advance(events):
            pass
        return events

    def finish(self) -> list[Event]:
        """A call that was cut off has been said as far as it came; what held nothing is text."""
        events: list[Event] = []
        if self._body is not None:
            if not self._has_spoken:
                events.append(TextEvent(self._raw))
        elif self._buffer and not (self._after_call and self._buffer.isspace()):
            events.append(TextEvent(self._buffer))
        self._buffer = ""
        return events

    def _advance(self, events: list[Event]) -> bool:
        """One step; False where it needs more text."""
        if self._body is not None:
            return self._continue_call(self._body, events)
        if self._is_plain:
            return self._say(len(self._buffer), events)
        found = find_first(self._buffer, self._marks)
        if found is None:
            return self._say_certain(events)
        place, mark = found
        if self._at_start_only and self._buffer[:place].strip():
            self._is_plain = True
            return True
        # The text may go on with a longer mark that begins like this one.
        behind = self._buffer[place:]
        if any(m != mark and m.startswith(behind) for m in self._marks):
            return False
        self._say(len(self._buffer[:place].rstrip()), events)
        self._buffer = self._buffer.lstrip()[len(mark) :]
        if mark in self._call_marks:
            self._mark = self._raw = mark
            self._has_spoken = False
            self._body = self._make_body(mark)
        else:
            self._after_call = True
        return True

    def _say_certain(self, events: list[Event]) -> bool:
        """Text that is no part of a mark; white space waits for what follows it."""
        if self._at_start_only and self._buffer.strip():
            stripped = self._buffer.lstrip()
            if not any(mark.startswith(stripped) for mark in self._marks):
                self._is_plain = True
                return True
            return False
        certain = len(self._buffer) - num_undecided(self._buffer, self._marks)
        self._say(len(self._buffer[:certain].rstrip()), events)
        return False

    def _say(self, length: int, events: list[Event]) -> bool:
        if length:
            text, self._buffer = self._buffer[:length], self._buffer[length:]
            if self._after_call:
                text = text.lstrip()
            self._after_call = False
            join(events, [TextEvent(text)])
        return False

    def _continue_call(self, body: Body, events: list[Event]) -> bool:
        text, self._buffer = self._buffer, ""
        self._raw += text
        said = body.feed(text)
        self._has_spoken = self._has_spoken or bool(said)
        join(events, said)
        if body.is_broken:
            # Behind the mark there may still be a call.
            self._body = None
            self._after_call = False
            self._is_plain = self._at_start_only
            join(events, [TextEvent(self._mark)])
            self._buffer = self._raw[len(self._mark) :]
            return True
        if body.is_done:
            self._body = None
            self._after_call = True
            self._buffer = body.rest
            return bool(self._buffer)
        return False
