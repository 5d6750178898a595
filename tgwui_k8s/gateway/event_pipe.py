"""Events from one exchange to the client, without waiting: whoever has to wait does it in between.

bytes ─► events ─► what the client sees of them ─► client
                                                └► held, where it cannot be written at once
"""

from __future__ import annotations

from tgwui_k8s.gateway.attempt import Attempt
from tgwui_k8s.gateway.downstream import ClientAnswer
from tgwui_k8s.gateway.event_stream import EventSplitter, is_comment
from tgwui_k8s.gateway.streams import Stream


class EventPipe:
    """Of one attempt. `feed` is called as bytes arrive, where nothing can be awaited or raised."""

    def __init__(self, attempt: Attempt, answer: ClientAnswer, stream: Stream) -> None:
        self._attempt = attempt
        self._answer = answer
        self._stream = stream
        self._splitter = EventSplitter()
        self._held = b""
        self._failure: Exception | None = None
        self.brought_event = False
        """The last bytes held an event, and not only comments or a part of one."""

    @property
    def has_rest(self) -> bool:
        """True while an event has begun and not ended."""
        return self._splitter.has_rest

    def feed(self, data: bytes) -> bool:
        """Take bytes; False where somebody has to be waited for, or nothing more is wanted."""
        events = self._events_in(data)
        if self.brought_event:
            self._attempt.note_event()
        else:
            self._attempt.note_bytes()
        if self._failure is not None or self._stream.is_complete:
            self._held = events
            return False
        if not events:
            return True
        if not self._answer.has_begun:
            self._held = events
            return False
        return self._answer.write_at_once(events)

    def take_held(self) -> bytes:
        """What is still to be written, before all else."""
        held, self._held = self._held, b""
        return held

    def raise_failure(self) -> None:
        """Raise what came behind that: the `ExchangeError` that ends the attempt, if one did."""
        failure, self._failure = self._failure, None
        if failure is not None:
            raise failure

    def _events_in(self, data: bytes) -> bytes:
        shown: list[bytes] = []
        self.brought_event = False
        try:
            for block in self._splitter.feed(data):
                if is_comment(block):
                    shown.append(block + b"\n\n")
                else:
                    self.brought_event = True
                    shown.append(self._stream.take(block))
        except Exception as error:  # noqa: BLE001 - raised again where the call waits
            self._failure = error
        return b"".join(shown)
