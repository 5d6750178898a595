"""One streamed answer from the client's side: when chunks came, and what was in them."""

from __future__ import annotations

import time
from array import array
from typing import Any

import msgspec

from benchmarks.load.sse import DONE, EventSplitter


class _Delta(msgspec.Struct):
    content: str | None = None
    reasoning_content: str | None = None


class _Choice(msgspec.Struct):
    text: str | None = None
    delta: _Delta | None = None
    token_ids: list[int] | None = None
    finish_reason: str | None = None

    @property
    def has_content(self) -> bool:
        if self.text or self.token_ids:
            return True
        return self.delta is not None and bool(self.delta.content or self.delta.reasoning_content)


class _Usage(msgspec.Struct):
    prompt_tokens: int = 0
    completion_tokens: int = 0


class _Chunk(msgspec.Struct):
    choices: list[_Choice] = []
    usage: _Usage | None = None
    error: Any = None


_decoder = msgspec.json.Decoder(_Chunk)


class Recording(msgspec.Struct):
    """One request. Times are on `time.perf_counter`, in seconds.

    Tokens are counted by the server's usage; without one by `token_ids`; without those by chunks,
    which is too few where a chunk holds several. `tokens_by` says which.
    """

    started: float
    first: float | None = None
    """When the first chunk with content came."""
    last: float | None = None
    ended: float | None = None
    gaps: array[float] = msgspec.field(default_factory=lambda: array("d"))
    """Between one chunk with content and the next: the inter-token latencies."""
    num_chunks: int = 0
    """Chunks with content."""
    num_prompt_tokens: int = 0
    error: str | None = None
    """Why it failed, in few words that are equal for equal causes."""
    _usage_tokens: int = 0
    _id_tokens: int = 0
    _is_complete: bool = False
    _splitter: EventSplitter = msgspec.field(default_factory=EventSplitter)

    def take(self, data: bytes) -> None:
        """Bytes of the answer's body came."""
        now = time.perf_counter()
        for payload in self._splitter.feed(data):
            if payload == DONE:
                self._is_complete = True
            else:
                self._take_event(payload, now)

    def end(self) -> None:
        """The connection is done with."""
        self.ended = time.perf_counter()
        if self.error is None and not self._is_complete:
            self.error = "truncated stream"
        if self.error is None and self.first is None:
            self.error = "empty answer"

    @property
    def ttft(self) -> float | None:
        """From before connecting to the first chunk with content."""
        return None if self.first is None else self.first - self.started

    @property
    def tpot(self) -> float | None:
        """Time per output token after the first; None for fewer than two."""
        if self.first is None or self.last is None or self.num_tokens < 2:
            return None
        return (self.last - self.first) / (self.num_tokens - 1)

    @property
    def e2e(self) -> float | None:
        """From before connecting to the end of the answer."""
        return None if self.ended is None else self.ended - self.started

    @property
    def num_tokens(self) -> int:
        """Tokens generated."""
        return self._usage_tokens or self._id_tokens or self.num_chunks

    @property
    def tokens_by(self) -> str:
        """What `num_tokens` was counted by."""
        if self._usage_tokens:
            return "usage"
        return "token_ids" if self._id_tokens else "chunks"

    def _take_event(self, payload: bytes, now: float) -> None:
        try:
            chunk = _decoder.decode(payload)
        except msgspec.MsgspecError:
            self.error = self.error or "chunk is no JSON"
            return
        if chunk.error is not None:
            self.error = f"error in stream: {error_code(chunk.error)}"
        if chunk.usage is not None:
            self._usage_tokens = chunk.usage.completion_tokens
            self.num_prompt_tokens = chunk.usage.prompt_tokens
        for choice in chunk.choices:
            if choice.finish_reason is not None:
                self._is_complete = True
            if choice.has_content:
                self._id_tokens += len(choice.token_ids or ())
                self._note_content(now)

    def _note_content(self, now: float) -> None:
        self.num_chunks += 1
        if self.last is None:
            self.first = now
        else:
            self.gaps.append(now - self.last)
        self.last = now


def error_code(error: Any) -> str:
    """The code of an OpenAI error object, or its type; bounded."""
    if isinstance(error, dict):
        return str(error.get("code") or error.get("type") or "unnamed")[:60]
    return "unnamed"
