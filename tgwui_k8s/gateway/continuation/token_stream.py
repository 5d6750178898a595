"""A stream of completions or chat chunks that can go on at another endpoint, token by token.

The endpoint is asked for `return_token_ids`, and every chunk is entered in the journal before it
goes to the client. When the endpoint is lost, the same request goes to another one with
`resume_token_ids`: the noise of the sampler is a function of seed, choice and position, so it goes
on as if nothing had happened. What the client did not ask for is taken out again, and all chunks
say the first one's id.
"""

from __future__ import annotations

import secrets
from typing import Any

import msgspec

from tgwui_k8s.gateway.call import CHAT, COMPLETIONS, Call
from tgwui_k8s.gateway.continuation.journal import Journal, NotContinuableError
from tgwui_k8s.gateway.continuation.plain_chunk import read_plain
from tgwui_k8s.gateway.event_stream import DONE, NOT_JSON, data_of, frame
from tgwui_k8s.gateway.failures import BrokenFramingError
from tgwui_k8s.gateway.streams import raise_if_error

_HEAD = ("id", "created", "model", "system_fingerprint")
"""One per response, on all its chunks."""

_EXTENSIONS = ("token_ids", "text_offset", "text_length", "prompt_token_ids")

_MAX_SEED = 2**62

_decode = msgspec.json.Decoder(dict[str, Any]).decode
_encode = msgspec.json.Encoder().encode


def can_continue(call: Call) -> bool:
    """Whether a call's stream can be continued at all."""
    return call.path in (COMPLETIONS, CHAT) and call.is_stream and call.asked.best_of is None


class TokenStream:
    """One client's stream, over all the endpoints that serve it. See `streams.Stream`."""

    def __init__(self, call: Call) -> None:
        self._call = call
        self._journal: Journal | None = None
        self._head: dict[str, Any] | None = None
        self._is_resumed = False
        self._keeps_extensions = call.asked.return_token_ids is True
        self._shows_tokens = self._keeps_extensions or call.asked.logprobs not in (None, False)
        self._wants_usage = _wants_usage(call)
        self._has_usage = False
        self.is_complete = False
        self._members: dict[str, Any] = {"return_token_ids": True}
        if call.asked.seed in (None, -1) and self._num_prompts() == 1:
            # Several prompts without a seed get noise of their own each: one seed would make
            # equal prompts equal. Their streams go on with other noise, which is as valid.
            self._members["seed"] = secrets.randbelow(_MAX_SEED)

    # -- towards the endpoint -----------------------------------------------------------------

    @property
    def has_delivered(self) -> bool:
        """Whether the client has any of it."""
        return self._journal is not None and self._journal.has_begun

    def body(self) -> bytes:
        """The request that gives the rest. Raises `NotContinuableError`."""
        self._is_resumed = self.has_delivered
        if self._journal is None or not self._is_resumed:
            self._journal = None
            return self._call.body_with(**self._members)
        return self._call.body_with(**self._members, **self._journal.resume_members())

    # -- towards the client -------------------------------------------------------------------

    def take(self, block: bytes) -> bytes:
        """One event as the client shall see it; nothing where it adds nothing.

        Raises `EndpointError` for an error of the endpoint, `BrokenFramingError` for nonsense.
        """
        if (plain := self._take_plain(block)) is not None:
            return plain
        data = data_of(block)
        if data == DONE:
            return self._end()
        try:
            chunk = _decode(data)
        except NOT_JSON:
            raise BrokenFramingError("an event is not a JSON object") from None
        raise_if_error(chunk)
        choices = chunk.get("choices")
        if not isinstance(choices, list):
            raise BrokenFramingError("a chunk has no choices")
        if not choices:
            self._has_usage = True
            self._call.note_usage(chunk.get("usage"))
            return self._frame(chunk)
        chunk["choices"] = [choice for choice in choices if self._enter(choice)]
        return self._frame(chunk) if chunk["choices"] else b""

    def finish(self) -> bytes | None:
        """`[DONE]`, where nothing else is missing."""
        if self._journal is None or not self._journal.is_finished:
            return None
        return self._end() if self._has_usage or not self._wants_usage else None

    def _end(self) -> bytes:
        if self._journal is None or not self._journal.is_finished:
            raise BrokenFramingError("the stream ended before its choices")
        self.is_complete = True
        return frame(DONE)

    def _take_plain(self, block: bytes) -> bytes | None:
        """What brings something to a choice that has begun; None, and not taken: it is another."""
        journal, head = self._journal, self._head
        if journal is None or head is None or (chunk := read_plain(block)) is None:
            return None
        choice = chunk.choices[0]
        if not 0 <= choice.index < len(journal.choices) or not (choice.text or choice.delta):
            return None
        entry = journal.choices[choice.index]
        if not entry.has_begun or entry.finish_reason is not None:
            return None
        entry.add(choice.token_ids, choice.text_offset, choice.text_length)
        self._count_completion(len(choice.token_ids))
        if not self._keeps_extensions:
            choice.hide_tokens()
        if self._is_resumed:
            for name, value in head.items():
                setattr(chunk, name, value)
        return frame(_encode(chunk))

    def _enter(self, choice: Any) -> bool:
        """Note a choice of a chunk and make it the client's; False: it adds nothing."""
        journal = self._journal
        if journal is None:
            journal = self._journal = self._new_journal()
        if not isinstance(choice, dict):
            raise BrokenFramingError("a choice is not a JSON object")
        index = choice.get("index")
        if not isinstance(index, int) or not 0 <= index < len(journal.choices):
            raise BrokenFramingError("a chunk is for a choice that nobody asked for")
        entry = journal.choices[index]
        if entry.finish_reason is not None:
            return False  # The endpoint that went on had to say again that it has ended.
        has_begun = entry.has_begun
        entry.note(choice)
        self._count(choice, has_begun=has_begun)
        if self._keeps_extensions:
            if self._is_resumed and has_begun:
                choice.pop("prompt_token_ids", None)
            return True
        for name in _EXTENSIONS:
            choice.pop(name, None)
        return self._shows_tokens or self._says_something(choice, has_begun=has_begun)

    def _count(self, choice: dict[str, Any], *, has_begun: bool) -> None:
        """Keep the call's figures, so that a stream that breaks off can be accounted for, too."""
        self._count_completion(len(choice["token_ids"]))
        call, prompt = self._call, choice.get("prompt_token_ids")
        if prompt is not None and not (self._is_resumed and has_begun):
            call.num_prompt_tokens = (call.num_prompt_tokens or 0) + len(prompt)

    def _count_completion(self, num_tokens: int) -> None:
        self._call.num_completion_tokens = (self._call.num_completion_tokens or 0) + num_tokens

    def _says_something(self, choice: dict[str, Any], *, has_begun: bool) -> bool:
        """False for a chunk that is there for its token ids only."""
        if choice.get("finish_reason") is not None or not has_begun:
            return True
        return bool(choice.get("text") or choice.get("delta"))

    def _frame(self, chunk: dict[str, Any]) -> bytes:
        if self._head is None:
            self._head = {name: chunk[name] for name in _HEAD if name in chunk}
        elif self._is_resumed:
            chunk.update(self._head)
        return frame(_encode(chunk))

    # -- details ------------------------------------------------------------------------------

    def _new_journal(self) -> Journal:
        asked = self._call.asked
        n = asked.n if type(asked.n) is int else 1
        try:
            return Journal(
                self._num_prompts() * n, asked.resume_token_ids, asked.resume_text_lengths
            )
        except (TypeError, ValueError):
            raise NotContinuableError("the request's own resume fields are wrong") from None

    def _num_prompts(self) -> int:
        return self._call.num_prompts() if self._call.path == COMPLETIONS else 1


def _wants_usage(call: Call) -> bool:
    options = call.asked.stream_options
    return isinstance(options, dict) and options.get("include_usage") is True
