"""What stands between the marks of a tool call, family by family.

A body is fed the text behind its mark. It says calls, and ends: done, with the text behind it in
`rest`; or broken, before it has said anything, and then it was no call but text.
"""

from __future__ import annotations

import ast
import json
import re
from collections.abc import Callable
from typing import Any, Protocol

from tgwui_k8s.api.parsers.events import Event, ToolCallArguments, ToolCallStart
from tgwui_k8s.api.parsers.scanning import JsonScanner


class CallNumbers:
    """Numbers and names the calls of one answer."""

    def __init__(self, make_id: Callable[[], str]) -> None:
        self._make_id = make_id
        self._next = 0

    @property
    def latest(self) -> int:
        """The index of the call that was started last."""
        return self._next - 1

    def start(self, name: str) -> ToolCallStart:
        """The next call."""
        self._next += 1
        return ToolCallStart(self.latest, self._make_id(), name)

    def whole(self, name: str, arguments: Any) -> list[Event]:
        """The next call, all of it."""
        start = self.start(name)
        text = arguments if isinstance(arguments, str) else _dump(arguments or {})
        return [start, ToolCallArguments(start.index, text)]


class Body(Protocol):
    """See the module."""

    @property
    def is_done(self) -> bool:
        """It has ended; what follows is in `rest`."""
        ...

    @property
    def is_broken(self) -> bool:
        """It has said nothing and is no call."""
        ...

    @property
    def rest(self) -> str:
        """Text behind the end."""
        ...

    def feed(self, text: str) -> list[Event]:
        """Take text; give what is certain of the calls."""
        ...


class JsonBody:
    """One or more objects with a name and arguments, or arrays of them, up to a closing mark.

    Where the name comes first, as models write it, the arguments are said as they come.
    """

    _HEAD = re.compile(
        r'\{\s*"name"\s*:\s*("(?:[^"\\]|\\.)*")\s*,\s*"(?:arguments|parameters)"\s*:\s*(?=\{)'
    )

    def __init__(self, calls: CallNumbers, closing: str = "", separators: str = "") -> None:
        """Without a `closing` mark the body ends with its first value.

        `separators`: characters that may stand between objects.
        """
        self.is_done = False
        self.is_broken = False
        self.rest = ""
        self._calls = calls
        self._closing = closing
        self._separators = separators
        self._buffer = ""
        self._has_spoken = False
        self._in_array = False
        self._arguments: JsonScanner | None = None
        self._object: JsonScanner | None = None
        self._probe = JsonScanner()
        self._num_probed = 0

    def feed(self, text: str) -> list[Event]:
        """Take text; give what is certain of the calls."""
        self._buffer += text
        events: list[Event] = []
        while self._advance(events):
            pass
        return events

    def _advance(self, events: list[Event]) -> bool:
        """One step; False where it needs more text, or none."""
        if self.is_done or self.is_broken:
            return False
        if self._arguments is not None:
            return self._say_arguments(self._arguments, events)
        if self._object is not None:
            return self._leave_object(self._object)
        self._buffer = self._buffer.lstrip()
        if not self._buffer:
            return False
        if self._buffer[0] == "{":
            return self._enter_object(events)
        return self._between_objects()

    def _between_objects(self) -> bool:
        first = self._buffer[0]
        if first == "[" and not self._in_array and not self._has_spoken:
            self._in_array = True
        elif first == "]" and self._in_array and self._has_spoken:
            self._in_array = False
            if not self._closing:
                self._end(1)
                return False
        elif self._has_spoken and first in ("," if self._in_array else self._separators):
            pass
        elif self._closing and self._closing.startswith(self._buffer[: len(self._closing)]):
            if len(self._buffer) < len(self._closing):
                return False
            self._end(len(self._closing))
            return False
        else:
            self._break_off()
            return False
        self._buffer = self._buffer[1:]
        return True

    def _enter_object(self, events: list[Event]) -> bool:
        head = self._HEAD.match(self._buffer)
        if head is not None:
            name = _loaded(head.group(1))
            if isinstance(name, str):
                events.append(self._calls.start(name))
                self._has_spoken = True
                self._buffer = self._buffer[head.end() :]
                self._arguments = JsonScanner()
                self._probe, self._num_probed = JsonScanner(), 0
                return True
        self._num_probed += self._probe.feed(self._buffer[self._num_probed :])
        if not self._probe.is_done:
            return False
        length = self._num_probed
        self._probe, self._num_probed = JsonScanner(), 0
        call = _loaded(self._buffer[:length])
        name = call.get("name") if isinstance(call, dict) else None
        if not isinstance(name, str):
            self._break_off()
            return False
        arguments = call.get("arguments", call.get("parameters"))
        events += self._calls.whole(name, arguments)
        self._has_spoken = True
        self._buffer = self._buffer[length:]
        self._end_value()
        return True

    def _say_arguments(self, scanner: JsonScanner, events: list[Event]) -> bool:
        length = scanner.feed(self._buffer)
        if length:
            events.append(ToolCallArguments(self._calls.latest, self._buffer[:length]))
        self._buffer = self._buffer[length:]
        if not scanner.is_done:
            return False
        self._arguments = None
        self._object = JsonScanner()
        self._object.feed("{")
        return True

    def _leave_object(self, scanner: JsonScanner) -> bool:
        """Whatever stands in the object behind the arguments is nobody's."""
        length = scanner.feed(self._buffer)
        self._buffer = self._buffer[length:]
        if not scanner.is_done:
            return False
        self._object = None
        self._end_value()
        return True

    def _end_value(self) -> None:
        if not self._in_array and not self._closing and not self._separators:
            self._end(0)

    def _end(self, length: int) -> None:
        self.is_done = True
        self.rest, self._buffer = self._buffer[length:], ""

    def _break_off(self) -> None:
        """What has been said stands; the rest is text."""
        if self._has_spoken:
            self._end(0)
        else:
            self.is_broken = True


class NamedBody:
    """A name, a mark, the arguments as JSON: `head` matches up to the arguments."""

    def __init__(self, calls: CallNumbers, head: re.Pattern[str], tail: re.Pattern[str]) -> None:
        """`head` has the group `name`; `tail` matches what ends the call, be it nothing."""
        self.is_done = False
        self.is_broken = False
        self.rest = ""
        self._calls = calls
        self._head = head
        self._tail = tail
        self._buffer = ""
        self._scanner: JsonScanner | None = None

    def feed(self, text: str) -> list[Event]:
        """Take text; give what is certain of the call."""
        self._buffer += text
        events: list[Event] = []
        if self._scanner is None:
            head = self._head.match(self._buffer)
            if head is None:
                self.is_broken = "{" in self._buffer
                return events
            events.append(self._calls.start(head.group("name")))
            self._buffer = self._buffer[head.end() :]
            self._scanner = JsonScanner()
        if not self._scanner.is_done:
            length = self._scanner.feed(self._buffer)
            if length:
                events.append(ToolCallArguments(self._calls.latest, self._buffer[:length]))
            self._buffer = self._buffer[length:]
        tail = self._tail.match(self._buffer) if self._scanner.is_done else None
        if tail is not None:
            self.is_done = True
            self.rest = self._buffer[tail.end() :]
        return events


class EitherBody:
    """A JSON array or object, or a name with arguments: the first character tells."""

    def __init__(self, value: Body, named: Body) -> None:
        self._value = value
        self._named = named
        self._chosen: Body | None = None
        self._buffer = ""

    @property
    def is_done(self) -> bool:
        return self._chosen is not None and self._chosen.is_done

    @property
    def is_broken(self) -> bool:
        return self._chosen is not None and self._chosen.is_broken

    @property
    def rest(self) -> str:
        return "" if self._chosen is None else self._chosen.rest

    def feed(self, text: str) -> list[Event]:
        """Take text; give what is certain of the calls."""
        if self._chosen is not None:
            return self._chosen.feed(text)
        self._buffer = (self._buffer + text).lstrip()
        if not self._buffer:
            return []
        self._chosen = self._value if self._buffer[0] in "[{" else self._named
        return self._chosen.feed(self._buffer)


class WholeBody:
    """A call that is understood only when it is complete, at its closing mark."""

    def __init__(
        self,
        calls: CallNumbers,
        closing: str,
        read: Callable[[str], list[tuple[str, dict[str, Any]]] | None],
    ) -> None:
        """`read` gives the calls in a text, or None where it is none."""
        self.is_done = False
        self.is_broken = False
        self.rest = ""
        self._calls = calls
        self._closing = closing
        self._read = read
        self._buffer = ""
        self._num_searched = 0

    def feed(self, text: str) -> list[Event]:
        """Take text; give all calls once they are complete."""
        self._buffer += text
        place = self._buffer.find(self._closing, self._num_searched)
        while place >= 0:
            found = self._read(self._buffer[:place])
            if found is not None:
                self.is_done = True
                self.rest = self._buffer[place + len(self._closing) :]
                return [event for call in found for event in self._calls.whole(*call)]
            # A bracket inside the arguments looks like the closing mark, too.
            place = self._buffer.find(self._closing, place + 1)
        self._num_searched = max(0, len(self._buffer) - len(self._closing) + 1)
        return []


def read_pythonic(text: str) -> list[tuple[str, dict[str, Any]]] | None:
    """`f(a=1), g()` as calls; None where it is something else."""
    try:
        parsed = ast.parse(f"[{text}]", mode="eval").body
        if not isinstance(parsed, ast.List) or not parsed.elts:
            return None
        return [_pythonic_call(item) for item in parsed.elts]
    except (SyntaxError, ValueError, TypeError, RecursionError, MemoryError):
        return None


def _pythonic_call(item: ast.expr) -> tuple[str, dict[str, Any]]:
    if not isinstance(item, ast.Call) or item.args:
        raise ValueError("not a call with named arguments")
    arguments = {}
    for keyword in item.keywords:
        value = ast.literal_eval(keyword.value)
        _dump(value)
        arguments[keyword.arg or ""] = value
    return ast.unparse(item.func), arguments


def read_gemma(text: str, quote: str) -> list[tuple[str, dict[str, Any]]] | None:
    """`call:name{key:value,…}`, its strings between `quote` marks; None for something else."""
    found = re.fullmatch(r"\s*call:([^\s{]+)\s*(\{.*\})\s*", text, re.DOTALL)
    if found is None:
        return None
    strings: list[str] = []

    def keep(match: re.Match[str]) -> str:
        strings.append(match.group(1))
        return f'"{len(strings) - 1}"'

    mark = re.escape(quote)
    skeleton = re.sub(f"{mark}(.*?){mark}", keep, found.group(2), flags=re.DOTALL)
    skeleton = re.sub(r"([{,]\s*)([A-Za-z_][\w.-]*)(\s*:)", r'\1"\2"\3', skeleton)
    arguments = _loaded(skeleton)
    if not isinstance(arguments, dict):
        return None
    return [(found.group(1), {key: _restore(value, strings) for key, value in arguments.items()})]


def _restore(value: Any, strings: list[str]) -> Any:
    if isinstance(value, str):
        return strings[int(value)] if value.isdecimal() and int(value) < len(strings) else value
    if isinstance(value, list):
        return [_restore(item, strings) for item in value]
    if isinstance(value, dict):
        return {key: _restore(item, strings) for key, item in value.items()}
    return value


def _loaded(text: str) -> Any:
    """JSON, or None where it is none."""
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return None


def _dump(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False)
