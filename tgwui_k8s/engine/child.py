"""One engine process, from its start to its end, as the API process sees it.

Starts it, carries messages both ways, relays what it writes to stdout and stderr into our log,
and says once how it ended. Knows nothing of models, requests or restarts.
"""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import sys
from collections.abc import Callable, Sequence
from contextlib import suppress

from tgwui_k8s.engine.channel import ApiChannel, ChannelError
from tgwui_k8s.engine.messages import FromEngine, Shutdown, ToEngine
from tgwui_k8s.errors import StartupError
from tgwui_k8s.observability.relay import relay_lines

ENGINE_COMMAND = (sys.executable, "-m", "tgwui_k8s.engine.process")

DUMP_SIGNAL = signal.SIGUSR1
"""The engine process writes the stacks of all its threads to stderr when it gets this."""

_KILL_SECONDS = 5.0
"""A killed process that is still there after this (stuck in the kernel) is given up."""
_ENVIRONMENT_PREFIX = "TGWUI_"


class EngineChild:
    """A running engine process. `on_exit` is called once, unless `stop` was called first."""

    def __init__(
        self, process: asyncio.subprocess.Process, on_exit: Callable[[str], None] | None
    ) -> None:
        """Use `start`."""
        self._process = process
        self._on_exit = on_exit
        self._channel: ApiChannel | None = None
        self._channel_closed = asyncio.get_running_loop().create_future()
        self._end = asyncio.ensure_future(self._await_end())

    @classmethod
    async def start(
        cls,
        on_message: Callable[[FromEngine], None],
        on_exit: Callable[[str], None],
        *,
        command: Sequence[str] = ENGINE_COMMAND,
        log_level: str = "info",
    ) -> EngineChild:
        """Start a process and listen to it. `on_exit` gets one sentence on how it ended.

        Raises `StartupError` where the machine has no room for another process or socket.
        """
        try:
            ours, theirs = socket.socketpair()
        except OSError as error:
            raise _cannot_start(error) from error
        with theirs:
            number = theirs.fileno()
            try:
                process = await asyncio.create_subprocess_exec(
                    *command,
                    *("--fd", str(number), "--log-level", log_level),
                    stdin=asyncio.subprocess.DEVNULL,
                    stdout=asyncio.subprocess.PIPE,
                    stderr=asyncio.subprocess.PIPE,
                    pass_fds=(number,),
                    # Ctrl-C on the terminal is for us to answer, not for it.
                    start_new_session=True,
                    env=_environment(),
                )
            except OSError as error:
                ours.close()
                raise _cannot_start(error) from error
        child = cls(process, on_exit)
        child._channel = await ApiChannel.open(ours, child._deliver(on_message), child._closed)
        return child

    @property
    def pid(self) -> int:
        """Its process id."""
        return self._process.pid

    def send(self, message: ToEngine) -> None:
        """Queue a message; nothing happens when the process is gone."""
        if self._channel is not None:
            self._channel.send(message)

    def dump_stacks(self) -> None:
        """Have the process log where all its threads are."""
        with suppress(ProcessLookupError):
            self._process.send_signal(DUMP_SIGNAL)

    async def stop(self, grace_seconds: float) -> None:
        """End the process: politely, then by force. No callback comes after the call."""
        self._on_exit = None
        if grace_seconds > 0:
            self.send(Shutdown())
            await asyncio.wait((self._end,), timeout=grace_seconds)
        self._kill()
        await asyncio.wait((self._end,), timeout=_KILL_SECONDS)
        if self._channel is not None:
            self._channel.close()

    def _kill(self) -> None:
        with suppress(ProcessLookupError):
            self._process.kill()

    def _deliver(self, on_message: Callable[[FromEngine], None]) -> Callable[[FromEngine], None]:
        def deliver(message: FromEngine) -> None:
            if self._on_exit is not None:
                on_message(message)

        return deliver

    def _closed(self, error: Exception | None) -> None:
        if not self._channel_closed.done():
            self._channel_closed.set_result(error)

    async def _await_end(self) -> None:
        """Relay the process's output until it has ended, then tell."""
        relays = [
            asyncio.ensure_future(relay_lines(stream, "engine"))
            for stream in (self._process.stdout, self._process.stderr)
            if stream is not None
        ]
        exited = asyncio.ensure_future(self._process.wait())
        await asyncio.wait((exited, self._channel_closed), return_when=asyncio.FIRST_COMPLETED)
        if not exited.done():
            # An end of the stream usually is the process's; one that stays is of no use.
            await asyncio.wait((exited,), timeout=1.0)
            self._kill()
        await exited
        # Last words first. What the process started itself may hold socket and pipes for longer.
        await asyncio.wait((self._channel_closed, *relays), timeout=1.0)
        if self._on_exit is not None:
            self._on_exit(self._describe_end())

    def _describe_end(self) -> str:
        error = self._channel_closed.result() if self._channel_closed.done() else None
        if isinstance(error, ChannelError):
            return f"the engine process was ended: {error}"
        return describe_exit(self._process.returncode)


def describe_exit(returncode: int | None) -> str:
    """How a process ended, in one sentence without a full stop."""
    if returncode is None or returncode >= 0:
        return f"the engine process exited with code {returncode}"
    try:
        name = signal.Signals(-returncode).name
    except ValueError:
        name = f"signal {-returncode}"
    if returncode == -signal.SIGKILL:
        return f"the engine process was killed ({name}): out of memory?"
    return f"the engine process crashed ({name})"


def _cannot_start(error: OSError) -> StartupError:
    return StartupError(f"cannot start the engine process: {error}")


def _environment() -> dict[str, str]:
    """Ours, without our settings: the engine takes its own by message, and needs no keys."""
    return {
        name: value
        for name, value in os.environ.items()
        if not name.startswith(_ENVIRONMENT_PREFIX)
    }
