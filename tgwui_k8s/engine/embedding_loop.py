"""Hosts a model that embeds: texts of all requests share its batches.

A step takes one text of every waiting request in turn, as many as the token budget holds after
padding, so that a request of two thousand texts delays nobody. A request is answered when the last
of its texts has its vector. Why this is not the scheduler: docs/decisions/0028.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field

from tgwui_k8s.contract import Embedder, EmbeddingRequest, EngineStats
from tgwui_k8s.engine.channel import EngineChannel
from tgwui_k8s.engine.messages import (
    AbortRequest,
    Embed,
    Embedded,
    EngineSettings,
    Heartbeat,
    Rejected,
    Shutdown,
    StepOutput,
    ToEngine,
)


@dataclass(slots=True, eq=False)
class _Running:
    """A request some of whose texts may have their vectors already."""

    request: EmbeddingRequest
    vectors: list[bytes] = field(default_factory=list)
    num_taken: int = 0
    """Texts that a batch has taken."""

    @property
    def next_text(self) -> tuple[int, ...]:
        """The token ids of the text that is computed next."""
        return self.request.token_id_lists[self.num_taken]

    @property
    def is_taken(self) -> bool:
        return self.num_taken == len(self.request.token_id_lists)

    @property
    def is_complete(self) -> bool:
        return len(self.vectors) == len(self.request.token_id_lists)


class EmbeddingLoop:
    """An embedder's host: drain the inbox, compute a batch, send the vectors that are complete."""

    def __init__(self, embedder: Embedder, settings: EngineSettings) -> None:
        self._embedder = embedder
        self._budget = settings.token_budget(embedder.info.device)
        self._max_batch = settings.max_num_seqs
        self._max_waiting = settings.max_waiting_requests
        self._requests: dict[str, _Running] = {}
        self._waiting: deque[_Running] = deque()
        """Requests with texts that no batch has taken; the first is next."""
        self._num_steps = 0
        self._num_tokens = 0
        self._step_tokens = 0

    @property
    def stats(self) -> EngineStats:
        """Requests count as running once their first vector is there."""
        num_running = sum(bool(running.vectors) for running in self._requests.values())
        return EngineStats(
            num_requests_running=num_running,
            num_requests_waiting=len(self._requests) - num_running,
            num_steps=self._num_steps,
            prompt_tokens=self._num_tokens,
        )

    def heartbeat(self) -> Heartbeat:
        """Progress as seen from another thread."""
        return Heartbeat(self._num_steps, bool(self._requests), self._step_tokens)

    def run(self, channel: EngineChannel) -> None:
        """Serve until `Shutdown`; then free the model."""
        try:
            while True:
                for message in channel.drain(wait=not self._waiting):
                    if isinstance(message, Shutdown):
                        return
                    self._handle(message, channel)
                for embedded in self._step():
                    channel.send(embedded)
                channel.send(StepOutput([], self.stats))
        finally:
            self._embedder.close()

    def _handle(self, message: ToEngine, channel: EngineChannel) -> None:
        if isinstance(message, Embed):
            self._add(message.request, channel)
        elif isinstance(message, AbortRequest):
            aborted = self._requests.pop(message.request_id, None)
            if aborted is not None:
                self._waiting = deque(one for one in self._waiting if one is not aborted)

    def _add(self, request: EmbeddingRequest, channel: EngineChannel) -> None:
        if len(self._requests) >= self._max_waiting:
            message = "The waiting queue is full. Please try again later."
            channel.send(Rejected(request.request_id, message))
            return
        running = _Running(request)
        self._requests[request.request_id] = running
        self._waiting.append(running)

    def _step(self) -> list[Embedded]:
        """Compute one batch; the requests it has completed."""
        batch = self._take_batch()
        if not batch:
            return []
        lists = [token_ids for _, token_ids in batch]
        self._step_tokens = sum(map(len, lists))
        vectors = self._embedder.embed(lists)
        self._num_steps += 1
        self._num_tokens += self._step_tokens
        self._step_tokens = 0
        for (running, _), vector in zip(batch, vectors, strict=True):
            running.vectors.append(vector.tobytes())
        touched = dict.fromkeys(running.request.request_id for running, _ in batch)
        done = [self._requests[name] for name in touched if self._requests[name].is_complete]
        for running in done:
            del self._requests[running.request.request_id]
        return [Embedded(one.request.request_id, b"".join(one.vectors)) for one in done]

    def _take_batch(self) -> list[tuple[_Running, tuple[int, ...]]]:
        """A text of every request in turn, one at least, while the padded batch fits the budget."""
        batch: list[tuple[_Running, tuple[int, ...]]] = []
        longest = 0
        while self._waiting and len(batch) < self._max_batch:
            running = self._waiting[0]
            longest = max(longest, len(running.next_text))
            if batch and longest * (len(batch) + 1) > self._budget:
                break
            batch.append((running, running.next_text))
            running.num_taken += 1
            self._waiting.rotate(-1)
            if running.is_taken:
                self._waiting.pop()
        return batch
