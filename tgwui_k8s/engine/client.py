"""The engine as the API process knows it: a `Backend` in front of a process of its own.

    stopped ──load──► loading ──► ready ──process dies──► restarting ──► ready
       ▲                │           │                         │
       └──fails─────────┘           └──no restarts left──► dead ◄┘

A process holds one model; loading another one means another process. Whatever happens to it, a
request gets its tokens, then its end or an error: nothing waits for a process that is gone.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import deque
from collections.abc import AsyncIterator, Callable, Sequence
from typing import Any, Literal

from msgspec.structs import replace

from tgwui_k8s import errors
from tgwui_k8s.contract import (
    EmbeddingRequest,
    EngineHealth,
    EngineStats,
    GenerationRequest,
    LoadProgress,
    LoadRequest,
    ModelInfo,
    TokenDelta,
)
from tgwui_k8s.engine.child import ENGINE_COMMAND, EngineChild
from tgwui_k8s.engine.mailbox import Mailbox
from tgwui_k8s.engine.messages import (
    AbortRequest,
    AdapterChanged,
    AddRequest,
    Embed,
    Embedded,
    EngineSettings,
    FromEngine,
    Heartbeat,
    Load,
    LoadAdapter,
    Loaded,
    LoadFailed,
    Progress,
    Rejected,
    StepOutput,
    UnloadAdapter,
)
from tgwui_k8s.engine.watchdog import Watchdog
from tgwui_k8s.errors import (
    EngineUnavailableError,
    ModelNotReadyError,
    OverloadedError,
    RequestError,
    StartupError,
)

Phase = Literal["stopped", "loading", "ready", "restarting", "dead"]

STABLE_SECONDS = 600.0
"""An engine that has worked for so long has earned all its restarts again."""

STOP_SECONDS = 1.5
"""An engine that is asked to stop gets so long before it is killed."""

_FIRST_BACKOFF_SECONDS = 0.5
_MAX_BACKOFF_SECONDS = 30.0
_WATCH_SECONDS = 0.5
_DUMP_SECONDS = 0.5
"""How long the stacks of a hung engine may take to be written before it is killed."""

logger = logging.getLogger(__name__)


class EngineClient:
    """Starts, watches and restarts the engine process, and speaks to it. One event loop."""

    def __init__(
        self,
        *,
        watchdog_seconds: float = 60.0,
        max_restarts: int = 0,
        log_level: str = "info",
        command: Sequence[str] = ENGINE_COMMAND,
    ) -> None:
        """`command` runs the engine process, as `engine.process` describes it."""
        self.phase: Phase = "stopped"
        self.on_phase: Callable[[Phase], None] = _ignore
        """Called after every change of `phase`."""
        self.on_progress: Callable[[LoadProgress], None] = _ignore
        """Called while a model loads."""
        self.load_seconds = 0.0
        """What the last load took."""
        self._watchdog_seconds = watchdog_seconds
        self._max_restarts = max_restarts
        self._log_level = log_level
        self._command = command
        self._info: ModelInfo | None = None
        self._stats = EngineStats()
        self._mailboxes: dict[str, Mailbox] = {}
        self._embeddings: dict[str, asyncio.Future[bytes]] = {}
        self._adapter_changes: deque[asyncio.Future[None]] = deque()
        """In the order of the messages, which is that of their answers."""
        self._child: EngineChild | None = None
        self._load: Load | None = None
        self._loaded: asyncio.Future[ModelInfo] | None = None
        self._watchdog: Watchdog | None = None
        self._watching: asyncio.Task[None] | None = None
        self._recovering: asyncio.Task[None] | None = None
        self._num_restarts = 0
        self._ready_time = 0.0
        self._why_lost = ""

    # ---------------------------------------------------------------------------- what is known

    @property
    def info(self) -> ModelInfo | None:
        """The loaded model; None while nothing is loaded."""
        return self._info

    @property
    def stats(self) -> EngineStats:
        """The newest figures; never waits."""
        return self._stats

    @property
    def health(self) -> EngineHealth:
        """Dead and not coming back, or alive; never waits."""
        age = 0.0 if self._watchdog is None else self._watchdog.silence_seconds
        if self.phase == "dead":
            return EngineHealth(alive=False, reason=self._why_lost, heartbeat_age_seconds=age)
        return EngineHealth(heartbeat_age_seconds=age)

    @property
    def pid(self) -> int | None:
        """The engine's process id; None while there is none."""
        return None if self._child is None else self._child.pid

    # --------------------------------------------------------------------------------- requests

    async def generate(self, request: GenerationRequest) -> AsyncIterator[list[TokenDelta]]:
        """Yield deltas until every choice has finished.

        Closing the iterator early aborts the request within one step. Raises `OverloadedError`,
        `ModelNotReadyError` or `EngineUnavailableError`.
        """
        if self.phase != "ready" or self._child is None:
            raise self._not_ready()
        mailbox = Mailbox(request.num_choices)
        self._mailboxes[request.request_id] = mailbox
        try:
            self._child.send(AddRequest(request))
            while deltas := await mailbox.take():
                yield deltas
        finally:
            if self._mailboxes.get(request.request_id) is mailbox:
                self._abort(request.request_id)

    async def embed(self, request: EmbeddingRequest) -> bytes:
        """The vectors of the texts: float32, row after row.

        Cancelling aborts the request. Raises as `generate` does.
        """
        if self.phase != "ready" or self._child is None:
            raise self._not_ready()
        vectors: asyncio.Future[bytes] = asyncio.get_running_loop().create_future()
        self._embeddings[request.request_id] = vectors
        try:
            self._child.send(Embed(request))
            return await vectors
        finally:
            was_open = self._embeddings.pop(request.request_id, None) is not None
            if was_open and self._child is not None:
                self._child.send(AbortRequest(request.request_id))

    def abort_choice(self, request_id: str, index: int) -> None:
        """End one choice now (its text met a stop string); unknown ids are ignored."""
        mailbox = self._mailboxes.get(request_id)
        if mailbox is None:
            return
        mailbox.end_choice(index)
        if mailbox.is_complete:
            self._abort(request_id)
        elif self._child is not None:
            self._child.send(AbortRequest(request_id, index))

    async def load_adapter(self, name: str, folder: str) -> None:
        """Make a LoRA adapter available; one of the same name is replaced.

        Raises a `StartupError` for one that cannot be loaded, and as `generate` does.
        """
        await self._change_adapters(LoadAdapter(name, folder))
        self._remember_adapters({**self._adapters, name: folder})

    async def unload_adapter(self, name: str) -> None:
        """Let no new request use the adapter; unknown names are ignored."""
        await self._change_adapters(UnloadAdapter(name))
        others = {key: folder for key, folder in self._adapters.items() if key != name}
        self._remember_adapters(others)

    @property
    def _adapters(self) -> dict[str, str]:
        return {} if self._load is None else self._load.request.adapters or {}

    def _remember_adapters(self, adapters: dict[str, str]) -> None:
        """An engine that is started again loads them again."""
        if self._load is not None:
            request = replace(self._load.request, adapters=adapters)
            self._load = replace(self._load, request=request)

    async def _change_adapters(self, message: LoadAdapter | UnloadAdapter) -> None:
        if self.phase != "ready" or self._child is None:
            raise self._not_ready()
        change: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._adapter_changes.append(change)
        self._child.send(message)
        await change

    def abort_all(self, error: RequestError) -> None:
        """End every request with this error."""
        for request_id in tuple(self._mailboxes):
            self._mailboxes[request_id].fail(error)
            self._abort(request_id)
        for vectors in self._embeddings.values():
            _fail(vectors, error)

    def _abort(self, request_id: str) -> None:
        del self._mailboxes[request_id]
        if self._child is not None:
            self._child.send(AbortRequest(request_id))

    def _not_ready(self) -> RequestError:
        if self.phase == "dead":
            return EngineUnavailableError(f"The engine is not available: {self._why_lost}.")
        if self.phase == "restarting":
            return EngineUnavailableError("The engine restarts.", retry_after_seconds=5)
        return ModelNotReadyError("No model is loaded yet.", retry_after_seconds=2)

    # -------------------------------------------------------------------------- loading, stopping

    async def load(self, request: LoadRequest, settings: EngineSettings) -> ModelInfo:
        """Start a process with this model; one that is loaded is stopped first.

        Raises a `StartupError`; nothing is loaded then. Cancelling stops the process.
        """
        await self.unload()
        self._num_restarts = 0
        self._load = Load(request, settings)
        self._change_phase("loading")
        try:
            return await self._start(self._load)
        except BaseException:
            self._change_phase("stopped")
            raise

    async def unload(self) -> None:
        """Stop the process and free what it holds; requests still running get an error."""
        await self._stop(STOP_SECONDS if self.phase == "ready" else 0.0)
        if self.phase != "stopped":
            self._change_phase("stopped")

    async def close(self) -> None:
        """Stop the engine for good; takes two seconds at most."""
        await self.unload()

    async def kill(self) -> None:
        """The same without asking the engine first."""
        await self._stop(0.0)

    async def _stop(self, grace_seconds: float) -> None:
        await _cancel(self._recovering)
        child = self._detach(ModelNotReadyError("The model has been unloaded."))
        if child is not None:
            await child.stop(grace_seconds)

    def _detach(self, error: RequestError) -> EngineChild | None:
        """From now on there is no process: requests end, figures rest. Returns the old one."""
        child, self._child = self._child, None
        if self._watching is not None:
            self._watching.cancel()
        self._watching = self._watchdog = self._info = None
        for mailbox in self._mailboxes.values():
            mailbox.fail(error)
        self._mailboxes.clear()
        for vectors in self._embeddings.values():
            _fail(vectors, error)
        self._embeddings.clear()
        for change in self._adapter_changes:
            _fail(change, error)
        self._adapter_changes.clear()
        self._stats = replace(
            self._stats, num_requests_running=0, num_requests_waiting=0, kv_cache_usage=0.0
        )
        return child

    async def _start(self, load: Load) -> ModelInfo:
        """Start a process and wait until its model is loaded. Raises a `StartupError`."""
        self._loaded = asyncio.get_running_loop().create_future()
        try:
            self._child = await EngineChild.start(
                self._receive, self._exited, command=self._command, log_level=self._log_level
            )
            self._child.send(load)
            return await self._loaded
        except BaseException:
            child = self._detach(EngineUnavailableError("The engine could not be started."))
            if child is not None:
                await child.stop(0.0)
            raise

    # ---------------------------------------------------------------------- what the engine says

    def _receive(self, message: FromEngine) -> None:
        if isinstance(message, StepOutput):
            self._take_step(message)
        elif isinstance(message, Heartbeat):
            if self._watchdog is not None:
                has_work = message.has_work or bool(self._mailboxes or self._embeddings)
                self._watchdog.hear(
                    message.num_steps, has_work=has_work, step_tokens=message.step_tokens
                )
        elif isinstance(message, Rejected):
            self._reject(message.request_id, OverloadedError(message.message))
        elif isinstance(message, Embedded):
            vectors = self._embeddings.pop(message.request_id, None)
            if vectors is not None and not vectors.done():
                vectors.set_result(message.vectors)
        elif isinstance(message, AdapterChanged):
            _settle(self._adapter_changes.popleft(), message)
        elif isinstance(message, Progress):
            self.on_progress(message.progress)
        elif isinstance(message, LoadFailed):
            self._end_loading(_startup_error(message.kind, message.message))
        else:
            self._become_ready(message)

    def _reject(self, request_id: str, error: RequestError) -> None:
        mailbox = self._mailboxes.pop(request_id, None)
        if mailbox is not None:
            mailbox.fail(error)
        vectors = self._embeddings.pop(request_id, None)
        if vectors is not None:
            _fail(vectors, error)

    def _become_ready(self, loaded: Loaded) -> None:
        self._info, self._stats = loaded.info, loaded.stats
        self.load_seconds = loaded.load_seconds
        self._ready_time = time.monotonic()
        self._watchdog = Watchdog(self._watchdog_seconds, loaded.token_budget)
        self._watching = asyncio.create_task(self._watch(self._watchdog))
        self._change_phase("ready")
        self._end_loading(loaded.info)

    def _end_loading(self, outcome: ModelInfo | StartupError) -> None:
        if self._loaded is None or self._loaded.done():
            return
        if isinstance(outcome, StartupError):
            self._loaded.set_exception(outcome)
        else:
            self._loaded.set_result(outcome)

    def _take_step(self, step: StepOutput) -> None:
        self._stats = step.stats
        if self._watchdog is not None:
            # A message is progress, whatever a backend counts as a step.
            self._watchdog.hear(step.stats.num_steps, has_work=False)
        for request_id, deltas in ((item.request_id, item.deltas) for item in step.requests):
            mailbox = self._mailboxes.get(request_id)
            if mailbox is not None:
                mailbox.put(deltas)
                if mailbox.is_complete:
                    del self._mailboxes[request_id]

    # --------------------------------------------------------------------- its death and return

    def _exited(self, how: str) -> None:
        """The process has ended without being asked to."""
        if self.phase == "ready":
            self._lose(how)
        else:
            self._end_loading(StartupError(f"{how}, while loading the model"))

    def _lose(self, reason: str) -> None:
        """Give a ready engine up: everybody learns it at once; then restart it, or do not."""
        logger.error("%s", reason)
        self._why_lost = reason
        child = self._detach(EngineUnavailableError(f"The engine is gone: {reason}."))
        if time.monotonic() - self._ready_time > STABLE_SECONDS:
            self._num_restarts = 0
        self._change_phase("restarting" if self._num_restarts < self._max_restarts else "dead")
        self._recovering = asyncio.create_task(self._recover(child))

    async def _recover(self, child: EngineChild | None) -> None:
        """Bury the old process and start new ones, as often as that is allowed."""
        if child is not None:
            await child.stop(0.0)
        while self._load is not None and self._num_restarts < self._max_restarts:
            backoff_seconds = _FIRST_BACKOFF_SECONDS * 2**self._num_restarts
            await asyncio.sleep(min(_MAX_BACKOFF_SECONDS, backoff_seconds))
            self._num_restarts += 1
            logger.warning(
                "the engine is started again (%d of %d times)",
                self._num_restarts,
                self._max_restarts,
            )
            try:
                await self._start(self._load)
            except StartupError as error:
                self._why_lost = str(error)
                logger.error("the engine does not start again: %s", error)
            else:
                return
        if self.phase != "dead":
            self._change_phase("dead")

    async def _watch(self, watchdog: Watchdog) -> None:
        """End an engine that hangs, so that nothing waits for it."""
        while (complaint := watchdog.complaint()) is None:
            due = time.monotonic() + _WATCH_SECONDS
            await asyncio.sleep(_WATCH_SECONDS)
            # If it was us who slept (a frozen container), the engine's words lie unread.
            watchdog.forgive(max(0.0, time.monotonic() - due))
        if self._child is not None:
            self._child.dump_stacks()
            await asyncio.sleep(_DUMP_SECONDS)
        self._watching = None
        self._lose(complaint)

    def _change_phase(self, phase: Phase) -> None:
        self.phase = phase
        self.on_phase(phase)


def _startup_error(kind_name: str, message: str) -> StartupError:
    """The error as it was raised in the engine process."""
    kind = getattr(errors, kind_name, None)
    if isinstance(kind, type) and issubclass(kind, StartupError):
        return kind(message)
    return StartupError(message)


def _settle(change: asyncio.Future[None], answer: AdapterChanged) -> None:
    if change.done():
        return
    if answer.error_kind:
        change.set_exception(_startup_error(answer.error_kind, answer.message))
    else:
        change.set_result(None)


def _fail(future: asyncio.Future[Any], error: RequestError) -> None:
    if not future.done():
        future.set_exception(error)


async def _cancel(task: asyncio.Task[None] | None) -> None:
    if task is not None:
        task.cancel()
        await asyncio.wait((task,))


def _ignore(*_: object) -> None:
    """Nobody listens."""
