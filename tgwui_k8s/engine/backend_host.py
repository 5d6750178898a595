"""Hosts a loader's own `Backend` (vLLM) in the engine process, behind the same messages.

A backend batches by itself and is asynchronous, so an event loop takes the place of the step
loop: one task per request, and what it yields goes out as it comes.
"""

from __future__ import annotations

import asyncio
import threading
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Protocol, runtime_checkable

from tgwui_k8s.contract import Backend, EngineStats, GenerationRequest
from tgwui_k8s.engine.channel import EngineChannel
from tgwui_k8s.engine.messages import (
    AbortRequest,
    AdapterChanged,
    AddRequest,
    Heartbeat,
    LoadAdapter,
    Rejected,
    RequestDeltas,
    Shutdown,
    StepOutput,
    ToEngine,
    UnloadAdapter,
)
from tgwui_k8s.errors import UnavailableError


@runtime_checkable
class AdapterBackend(Protocol):
    """A `Backend` that runs LoRA adapters (`Capabilities.adapters`)."""

    def load_adapter(self, name: str, folder: Path) -> None:
        """Let requests name the adapter in `folder`."""
        ...

    def unload_adapter(self, name: str) -> None:
        """Forget an adapter; requests that run go on with it."""
        ...


class BackendHost:
    """Answers the API process's messages with what a backend generates."""

    def __init__(self, backend: Backend, max_waiting_requests: int) -> None:
        """At most `max_waiting_requests` more than the backend is running are taken."""
        self._backend = backend
        self._max_waiting_requests = max_waiting_requests
        self._tasks: dict[str, asyncio.Task[None]] = {}
        self._ending: set[asyncio.Task[None]] = set()
        """Aborted, and not yet at their end; they no longer count."""
        self._inbox: asyncio.Queue[ToEngine] = asyncio.Queue()
        self._failure: BaseException | None = None

    @property
    def stats(self) -> EngineStats:
        """The backend's own figures."""
        return self._backend.stats

    def heartbeat(self) -> Heartbeat:
        """A sign of life; progress is what the backend counts as steps."""
        return Heartbeat(self._backend.stats.num_steps, has_work=bool(self._tasks), step_tokens=0)

    def run(self, channel: EngineChannel) -> None:
        """Serve until `Shutdown`; then close the backend.

        Raises what the backend raises beside `UnavailableError`: such a fault ends the engine.
        """
        asyncio.run(self._serve(channel))

    async def _serve(self, channel: EngineChannel) -> None:
        forward = partial(_forward, channel, asyncio.get_running_loop(), self._inbox)
        threading.Thread(target=forward, name="messages", daemon=True).start()
        try:
            while not isinstance(message := await self._inbox.get(), Shutdown):
                self._handle(message, channel)
            if self._failure is not None:
                raise self._failure
        finally:
            for task in self._tasks.values():
                task.cancel()
            tasks = (*self._tasks.values(), *self._ending)
            await asyncio.gather(*tasks, return_exceptions=True)
            await self._backend.close()

    def _handle(self, message: ToEngine, channel: EngineChannel) -> None:
        if isinstance(message, AddRequest):
            self._add(message.request, channel)
        elif isinstance(message, AbortRequest) and message.index is not None:
            self._backend.abort_choice(message.request_id, message.index)
        elif isinstance(message, AbortRequest):
            task = self._tasks.pop(message.request_id, None)
            if task is not None:
                self._ending.add(task)
                task.cancel()
        elif isinstance(message, (LoadAdapter, UnloadAdapter)):
            channel.send(self._change_adapters(message))

    def _change_adapters(self, message: LoadAdapter | UnloadAdapter) -> AdapterChanged:
        if not isinstance(self._backend, AdapterBackend):
            return AdapterChanged("UnsupportedModelError", "this loader runs no LoRA adapters")
        if isinstance(message, UnloadAdapter):
            self._backend.unload_adapter(message.name)
        else:
            self._backend.load_adapter(message.name, Path(message.folder))
        return AdapterChanged()

    def _add(self, request: GenerationRequest, channel: EngineChannel) -> None:
        num_waiting = len(self._tasks) - self._backend.stats.num_requests_running
        if num_waiting >= self._max_waiting_requests:
            message = "The waiting queue is full. Please try again later."
            channel.send(Rejected(request.request_id, message))
            return
        task = asyncio.create_task(self._generate(request, channel))
        self._tasks[request.request_id] = task
        task.add_done_callback(lambda done: self._forget(request.request_id, done))

    async def _generate(self, request: GenerationRequest, channel: EngineChannel) -> None:
        try:
            async for deltas in self._backend.generate(request):
                output = [RequestDeltas(request.request_id, deltas)]
                channel.send(StepOutput(output, self._backend.stats))
        except UnavailableError as error:
            channel.send(Rejected(request.request_id, error.message))
        except asyncio.CancelledError:
            # No more deltas come that would tell the new figures.
            channel.send(StepOutput([], self._backend.stats))
            raise

    def _forget(self, request_id: str, task: asyncio.Task[None]) -> None:
        self._tasks.pop(request_id, None)
        self._ending.discard(task)
        if not task.cancelled() and task.exception() is not None:
            self._failure = task.exception()
            self._inbox.put_nowait(Shutdown())


def _forward(
    channel: EngineChannel, loop: asyncio.AbstractEventLoop, inbox: asyncio.Queue[ToEngine]
) -> None:
    """Bring messages from the channel to the event loop until the last one."""
    message: ToEngine | None = None
    with suppress(RuntimeError):  # the loop has ended before the channel did
        while not isinstance(message, Shutdown):
            message = channel.receive()
            loop.call_soon_threadsafe(inbox.put_nowait, message)
