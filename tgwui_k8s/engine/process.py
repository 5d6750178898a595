"""The engine process: loads one model, steps it until it is told to stop, and exits.

    python -m tgwui_k8s.engine.process --fd N [--log-level LEVEL]

Started by `engine.child` with its end of the channel as file descriptor N; nothing else comes in
by argument. Three threads: the main one loads and steps, one reads messages, one sends heartbeats.
The process never outlives the API process, and leaves signals meant for the group to it. An
exception in a step ends it: after a fault in a forward nothing in memory can be trusted.

Exit codes: 0 told to stop, 1 a fault, 3 the model could not be loaded.
"""

from __future__ import annotations

import argparse
import ctypes
import faulthandler
import gc
import logging
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from types import FrameType
from typing import Protocol

from msgspec.structs import replace

from tgwui_k8s.config import ObservabilitySettings
from tgwui_k8s.contract import Embedder, EngineStats, LoadProgress, ModelInfo, ModelRunner
from tgwui_k8s.engine.backend_host import BackendHost
from tgwui_k8s.engine.channel import ChannelClosedError, EngineChannel
from tgwui_k8s.engine.core import EngineCore
from tgwui_k8s.engine.embedding_loop import EmbeddingLoop
from tgwui_k8s.engine.grammar import Grammars
from tgwui_k8s.engine.messages import (
    AbortRequest,
    AdapterChanged,
    AddRequest,
    Heartbeat,
    Load,
    LoadAdapter,
    Loaded,
    LoadFailed,
    Progress,
    Rejected,
    Shutdown,
    StepOutput,
    ToEngine,
    UnloadAdapter,
)
from tgwui_k8s.errors import NotEnoughMemoryError, OverloadedError, StartupError, TgwuiError
from tgwui_k8s.garbage_collection import collect_seldom, keep_what_is_there
from tgwui_k8s.observability.log import setup_logging
from tgwui_k8s.registry import load_model

HEARTBEAT_SECONDS = 1.0
DUMP_SIGNAL = signal.SIGUSR1
"""Writes the stacks of all threads to stderr: what a watchdog wants before it kills."""

_PROGRESS_SECONDS = 0.1
_PR_SET_PDEATHSIG = 1

logger = logging.getLogger(__name__)


class Host(Protocol):
    """A loaded model at work: our step loop, or a backend with its own."""

    @property
    def stats(self) -> EngineStats:
        """The newest figures."""
        ...

    def heartbeat(self) -> Heartbeat:
        """A sign of life; called from another thread."""
        ...

    def run(self, channel: EngineChannel) -> None:
        """Serve until `Shutdown`; then free the model."""
        ...


# -------------------------------------------------------------------------------------- the process


def main() -> int:
    """Run the process; returns its exit code."""
    parser = argparse.ArgumentParser(description="The engine process; started by the server.")
    parser.add_argument("--fd", type=int, required=True)
    parser.add_argument("--log-level", default="info")
    arguments = parser.parse_args()
    _prepare_process()
    setup_logging(ObservabilitySettings(log_level=arguments.log_level))
    connection = socket.socket(fileno=arguments.fd)
    # Helpers that a loader starts must not keep the channel open after our death.
    connection.set_inheritable(False)
    return serve(EngineChannel(connection))


def _prepare_process() -> None:
    """Die with the parent, survive Ctrl-C, say where a crash happened."""
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    for number in (signal.SIGINT, signal.SIGTERM):
        # A handler, not SIG_IGN, which programs started from here would inherit.
        signal.signal(number, _leave_to_parent)
    faulthandler.enable()
    faulthandler.register(DUMP_SIGNAL, all_threads=True)
    os.umask(0o002)
    collect_seldom()


def _leave_to_parent(number: int, frame: FrameType | None) -> None:
    """The API process decides when the engine stops."""


def serve(channel: EngineChannel) -> int:
    """Load what the first message says and serve it until told to stop; the exit code."""
    pulse = Pulse(channel)
    try:
        first = channel.receive()
        if not isinstance(first, Load):
            return 0
        started = time.monotonic()
        try:
            host, info = load(first, channel)
        except StartupError as error:
            channel.send(LoadFailed(type(error).__name__, str(error)))
            return 3
        pulse.source = host.heartbeat
        seconds = time.monotonic() - started
        channel.send(Loaded(info, host.stats, seconds, first.settings.token_budget(info.device)))
        host.run(channel)
    except ChannelClosedError:
        return 0
    except Exception:  # the boundary of the process
        logger.critical("the engine fails and exits", exc_info=True)
        return 1
    return 0


# ------------------------------------------------------------------------------------------ loading


def load(message: Load, channel: EngineChannel) -> tuple[Host, ModelInfo]:
    """Load and warm up the model. Every failure is a `StartupError`."""
    request, settings = message.request, message.settings
    report = ProgressReport(channel)
    try:
        loaded = load_model(request, report)
        report(LoadProgress("warming_up", report.last.bytes_read, report.last.bytes_total))
        host: Host
        info: ModelInfo | None
        if isinstance(loaded, ModelRunner):
            loaded.warm_up()
            grammars = Grammars.of(loaded.info, request.path)
            core = EngineCore(loaded, settings, grammars=grammars)
            core.adapters.load_all(request.adapters)
            host = StepLoop(core)
            info = _with_engine(loaded, has_grammars=grammars is not None)
        elif isinstance(loaded, Embedder):
            loaded.warm_up()
            host, info = EmbeddingLoop(loaded, settings), loaded.info
        else:
            host = BackendHost(loaded, settings.max_waiting_requests)
            info = loaded.info
    except TgwuiError as error:
        raise error if isinstance(error, StartupError) else StartupError(str(error)) from error
    except MemoryError:
        raise NotEnoughMemoryError(
            "memory ran out while loading; take a smaller model, or raise the memory limit"
        ) from None
    except ChannelClosedError:
        raise
    except Exception as error:
        logger.exception("loader '%s' failed", request.loader)
        raise StartupError(f"loader '{request.loader}' failed: {_in_short(error)}") from error
    gc.collect()
    keep_what_is_there()
    if info is None:
        raise StartupError(f"loader '{request.loader}' returned a backend without a model")
    return host, info


def _in_short(error: Exception) -> str:
    """Its kind and what it says, in one line."""
    return f"{type(error).__name__}: {' '.join(str(error).split())[:500]}"


def _with_engine(runner: ModelRunner, *, has_grammars: bool) -> ModelInfo:
    """The loader's facts, and what the engine around its model can do."""
    capabilities = replace(
        runner.info.capabilities,
        grammar=has_grammars,
        prompt_lookup=runner.layout.chunked_prefill,
    )
    return replace(runner.info, capabilities=capabilities)


class ProgressReport:
    """A loader's progress callback: sends on every new phase, else ten times a second."""

    def __init__(self, channel: EngineChannel) -> None:
        self.last = LoadProgress("starting")
        self._channel = channel
        self._next_time = 0.0

    def __call__(self, progress: LoadProgress) -> None:
        """Report how far loading is; may be called as often as it likes."""
        now = time.monotonic()
        if progress.phase != self.last.phase or now >= self._next_time:
            self._next_time = now + _PROGRESS_SECONDS
            self._channel.send(Progress(progress))
        self.last = progress


# ----------------------------------------------------------------------------------------- stepping


class StepLoop:
    """Our engine's host: drain the inbox, step, send what the step produced in one message."""

    def __init__(self, core: EngineCore) -> None:
        self._core = core

    @property
    def stats(self) -> EngineStats:
        """The core's figures."""
        return self._core.stats

    def heartbeat(self) -> Heartbeat:
        """Progress as seen from another thread; a torn reading mends with the next one."""
        core = self._core
        return Heartbeat(core.num_steps, core.has_work, core.step_tokens)

    def run(self, channel: EngineChannel) -> None:
        """Serve until `Shutdown`; then free the model."""
        try:
            while True:
                for message in channel.drain(wait=not self._core.has_work):
                    if isinstance(message, Shutdown):
                        return
                    self._handle(message, channel)
                # Without work this computes nothing, and the message tells the new figures.
                outputs = self._core.step()
                channel.send(StepOutput(outputs, self._core.stats))
        finally:
            self._core.runner.close()

    def _handle(self, message: ToEngine, channel: EngineChannel) -> None:
        if isinstance(message, AddRequest):
            try:
                self._core.add_request(message.request)
            except OverloadedError as error:
                channel.send(Rejected(message.request.request_id, error.message))
        elif isinstance(message, AbortRequest):
            self._core.abort(message.request_id, message.index)
        elif isinstance(message, (LoadAdapter, UnloadAdapter)):
            channel.send(self._change_adapters(message))

    def _change_adapters(self, message: LoadAdapter | UnloadAdapter) -> AdapterChanged:
        if isinstance(message, UnloadAdapter):
            self._core.adapters.unload(message.name)
            return AdapterChanged()
        try:
            self._core.adapters.load(message.name, Path(message.folder))
        except StartupError as error:
            return AdapterChanged(type(error).__name__, str(error))
        except Exception as error:  # whatever a folder holds, streams under way go on
            logger.exception("adapter '%s' cannot be loaded", message.name)
            return AdapterChanged(
                StartupError.__name__,
                f"the adapter '{message.name}' cannot be loaded: {_in_short(error)}",
            )
        return AdapterChanged()


class Pulse:
    """Sends heartbeats from a thread, so that they come while a step or a load is under way."""

    def __init__(self, channel: EngineChannel) -> None:
        self.source: Callable[[], Heartbeat] = _resting
        self._channel = channel
        threading.Thread(target=self._beat, name="heartbeat", daemon=True).start()

    def _beat(self) -> None:
        with suppress(ChannelClosedError):
            while True:
                self._channel.send(self.source())
                time.sleep(HEARTBEAT_SECONDS)


def _resting() -> Heartbeat:
    return Heartbeat(num_steps=0, has_work=False, step_tokens=0)


if __name__ == "__main__":
    sys.exit(main())
