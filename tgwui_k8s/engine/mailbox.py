"""Deltas of one request on their way to its consumer: between the channel and `generate`.

A consumer that is slower than the engine finds everything it missed merged into one delta per
choice, so what waits for it costs some bytes per token and no more.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from itertools import chain

from tgwui_k8s.contract import TokenDelta

_MERGE_AT = 64
"""More deltas than this do not lie around unmerged."""


class Mailbox:
    """One request's deltas; one consumer. Knows nothing of processes."""

    __slots__ = ("_error", "_loop", "_open_choices", "_pending", "_waiter")

    def __init__(self, num_choices: int) -> None:
        """Made on the consumer's event loop."""
        # Kept, because looking it up is a system call: too much for every step of every request.
        self._loop = asyncio.get_running_loop()
        self._open_choices = set(range(num_choices))
        self._pending: list[TokenDelta] = []
        self._error: Exception | None = None
        self._waiter: asyncio.Future[None] | None = None

    @property
    def is_complete(self) -> bool:
        """True when nothing more can arrive."""
        return not self._open_choices

    def put(self, deltas: Iterable[TokenDelta]) -> None:
        """Add what a step produced; deltas of choices that have ended are dropped."""
        pending, open_choices = self._pending, self._open_choices
        for delta in deltas:
            if delta.index in open_choices:
                pending.append(delta)
                if delta.finish_reason is not None:
                    open_choices.remove(delta.index)
        if len(pending) > _MERGE_AT:
            self._pending = merge_deltas(pending)
        self._wake()

    def end_choice(self, index: int) -> None:
        """Forget a choice: what is pending of it is dropped, and what may still come."""
        self._open_choices.discard(index)
        self._pending = [delta for delta in self._pending if delta.index != index]
        self._wake()

    def fail(self, error: Exception) -> None:
        """End the request: the consumer gets what is pending, then this error."""
        if self._open_choices:
            self._open_choices.clear()
            self._error = error
            self._wake()

    async def take(self) -> list[TokenDelta]:
        """Everything pending, at most one delta per choice; waits for it. Empty at the end.

        Raises the error the request failed with, once nothing is pending.
        """
        while not self._pending and self._open_choices:
            self._waiter = self._loop.create_future()
            await self._waiter
        if self._pending:
            deltas, self._pending = self._pending, []
            return deltas if len(deltas) == 1 else merge_deltas(deltas)
        if self._error is not None:
            raise self._error
        return []

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)


def merge_deltas(deltas: Iterable[TokenDelta]) -> list[TokenDelta]:
    """One delta per choice that says the same as all of that choice's deltas in order."""
    by_choice: dict[int, list[TokenDelta]] = {}
    for delta in deltas:
        by_choice.setdefault(delta.index, []).append(delta)
    return [parts[0] if len(parts) == 1 else _merge(parts) for parts in by_choice.values()]


def _merge(parts: list[TokenDelta]) -> TokenDelta:
    """The first delta's facts about the start, the last one's about the end, tokens of all."""
    first, last = parts[0], parts[-1]
    return TokenDelta(
        index=first.index,
        token_ids=tuple(chain.from_iterable(part.token_ids for part in parts)),
        finish_reason=last.finish_reason,
        stop_token_id=last.stop_token_id,
        logprobs=tuple(chain.from_iterable(part.logprobs for part in parts)),
        prompt_logprobs=first.prompt_logprobs,
        num_cached_tokens=first.num_cached_tokens,
        queue_seconds=first.queue_seconds,
        error=last.error,
        error_code=last.error_code,
    )
