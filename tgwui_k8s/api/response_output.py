"""A response's output: the events of a chat answer as items, and as the events of a stream."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable
from typing import ClassVar

from tgwui_k8s.api.answer import new_response_id
from tgwui_k8s.api.parsers.events import (
    Event,
    ReasoningEvent,
    TextEvent,
    ToolCallArguments,
    ToolCallStart,
)
from tgwui_k8s.api.schemas.response_answer import (
    ArgumentsDelta,
    ArgumentsDone,
    CallItem,
    Item,
    ItemAdded,
    ItemDone,
    MessageItem,
    OutputEvent,
    OutputText,
    Part,
    PartAdded,
    PartDone,
    ReasoningDelta,
    ReasoningDone,
    ReasoningItem,
    ReasoningText,
    Status,
    TextDelta,
    TextDone,
)
from tgwui_k8s.errors import IntegrityError


class Output:
    """The items of one response, the last of which may still grow."""

    def __init__(self) -> None:
        self.items: list[Item] = []
        """Those that are complete."""
        self._open: _OpenItem | None = None

    def take(self, events: Iterable[Event]) -> list[OutputEvent]:
        """Add what has come; what a stream says about it."""
        said: list[OutputEvent] = []
        for event in events:
            if self._open is None or not isinstance(event, self._open.grows_by):
                said += self.close("completed")
                self._open = _open_item(event, len(self.items))
                said += self._open.begin()
            text = _text(event)
            if text:
                self._open.text += text
                said.append(self._open.delta(text))
        return said

    def close(self, status: Status) -> list[OutputEvent]:
        """Complete the open item; what a stream says about it."""
        if self._open is None:
            return []
        closing, self._open = self._open, None
        item = closing.item(status)
        self.items.append(item)
        return [*closing.end(), ItemDone(output_index=closing.index, item=item)]


class _OpenItem(ABC):
    """An item that grows."""

    prefix: ClassVar[str]
    grows_by: ClassVar[type]

    def __init__(self, index: int) -> None:
        self.index = index
        self.id = new_response_id(self.prefix)
        self.text = ""

    @abstractmethod
    def begin(self) -> list[OutputEvent]: ...

    @abstractmethod
    def delta(self, text: str) -> OutputEvent: ...

    @abstractmethod
    def end(self) -> list[OutputEvent]: ...

    @abstractmethod
    def item(self, status: Status) -> Item: ...


class _Message(_OpenItem):
    """What the assistant says; its text is a part of it."""

    prefix = "msg_"
    grows_by = TextEvent

    def begin(self) -> list[OutputEvent]:
        item = MessageItem(id=self.id, status="in_progress", content=[])
        return [
            ItemAdded(output_index=self.index, item=item),
            PartAdded(item_id=self.id, output_index=self.index, part=self._part()),
        ]

    def delta(self, text: str) -> OutputEvent:
        return TextDelta(item_id=self.id, output_index=self.index, delta=text)

    def end(self) -> list[OutputEvent]:
        return [
            TextDone(item_id=self.id, output_index=self.index, text=self.text),
            PartDone(item_id=self.id, output_index=self.index, part=self._part()),
        ]

    def item(self, status: Status) -> Item:
        return MessageItem(id=self.id, status=status, content=[OutputText(self.text)])

    def _part(self) -> Part:
        return OutputText(self.text)


class _Reasoning(_OpenItem):
    """What the model thinks."""

    prefix = "rs_"
    grows_by = ReasoningEvent

    def begin(self) -> list[OutputEvent]:
        item = ReasoningItem(id=self.id, status="in_progress", content=[])
        return [
            ItemAdded(output_index=self.index, item=item),
            PartAdded(item_id=self.id, output_index=self.index, part=ReasoningText("")),
        ]

    def delta(self, text: str) -> OutputEvent:
        return ReasoningDelta(item_id=self.id, output_index=self.index, delta=text)

    def end(self) -> list[OutputEvent]:
        part = ReasoningText(self.text)
        return [
            ReasoningDone(item_id=self.id, output_index=self.index, text=self.text),
            PartDone(item_id=self.id, output_index=self.index, part=part),
        ]

    def item(self, status: Status) -> Item:
        return ReasoningItem(id=self.id, status=status, content=[ReasoningText(self.text)])


class _Call(_OpenItem):
    """A call of a function."""

    prefix = "fc_"
    grows_by = ToolCallArguments

    def __init__(self, index: int, start: ToolCallStart) -> None:
        super().__init__(index)
        self._start = start

    def begin(self) -> list[OutputEvent]:
        return [ItemAdded(output_index=self.index, item=self.item("in_progress"))]

    def delta(self, text: str) -> OutputEvent:
        return ArgumentsDelta(item_id=self.id, output_index=self.index, delta=text)

    def end(self) -> list[OutputEvent]:
        name, arguments = self._start.name, self.text
        return [
            ArgumentsDone(item_id=self.id, output_index=self.index, name=name, arguments=arguments)
        ]

    def item(self, status: Status) -> Item:
        return CallItem(
            id=self.id,
            status=status,
            call_id=self._start.id,
            name=self._start.name,
            arguments=self.text,
        )


def _open_item(event: Event, index: int) -> _OpenItem:
    if isinstance(event, TextEvent):
        return _Message(index)
    if isinstance(event, ReasoningEvent):
        return _Reasoning(index)
    if isinstance(event, ToolCallStart):
        return _Call(index, event)
    raise IntegrityError("arguments of a call that has not begun")


def _text(event: Event) -> str:
    """What an event adds to its item's text."""
    if isinstance(event, (TextEvent, ReasoningEvent)):
        return event.text
    return event.delta if isinstance(event, ToolCallArguments) else ""
