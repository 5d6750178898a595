"""Hosting a backend that batches by itself, over a real channel."""

from __future__ import annotations

import asyncio
import socket
import threading
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import msgspec
import pytest

from tgwui_k8s.contract import (
    Backend,
    EngineStats,
    GenerationRequest,
    ModelInfo,
    TokenDelta,
)
from tgwui_k8s.engine.backend_host import BackendHost
from tgwui_k8s.engine.channel import EngineChannel, FrameSplitter, encode_frame
from tgwui_k8s.engine.messages import (
    AbortRequest,
    AdapterChanged,
    AddRequest,
    FromEngine,
    Heartbeat,
    LoadAdapter,
    Rejected,
    Shutdown,
    StepOutput,
    ToEngine,
    UnloadAdapter,
)
from tgwui_k8s.errors import OverloadedError
from tgwui_k8s.sampling import SamplingParams


class ToyBackend:
    """Echoes the prompt token by token; token 0 waits for ever, 99 breaks, 98 refuses."""

    info: ModelInfo | None = None

    def __init__(self) -> None:
        self.stats = EngineStats()
        self.aborted: list[tuple[str, int | None]] = []
        self.adapters: dict[str, Path] = {}
        self.is_closed = False

    async def generate(self, request: GenerationRequest) -> AsyncIterator[list[TokenDelta]]:
        try:
            for position, token_id in enumerate(request.prompt_token_ids, 1):
                if token_id == 0:
                    await asyncio.Event().wait()
                if token_id == 98:
                    raise OverloadedError("no room")
                if token_id == 99:
                    raise RuntimeError("broken")
                is_last = position == len(request.prompt_token_ids)
                yield [TokenDelta(0, (token_id,), "length" if is_last else None)]
        except asyncio.CancelledError:
            self.aborted.append((request.request_id, None))
            raise

    def abort_choice(self, request_id: str, index: int) -> None:
        self.aborted.append((request_id, index))

    def load_adapter(self, name: str, folder: Path) -> None:
        self.adapters[name] = folder

    def unload_adapter(self, name: str) -> None:
        del self.adapters[name]

    async def close(self) -> None:
        self.is_closed = True


class ApiEnd:
    """The API process, reduced to blocking calls."""

    def __init__(self, connection: socket.socket) -> None:
        self._connection = connection
        self._splitter = FrameSplitter()
        self._messages: list[FromEngine] = []
        connection.settimeout(10)

    def send(self, message: ToEngine) -> None:
        self._connection.sendall(encode_frame(message))

    def receive(self) -> FromEngine:
        while not self._messages:
            for payload in self._splitter.feed(self._connection.recv(65536)):
                self._messages.append(msgspec.msgpack.decode(payload, type=FromEngine))
        return self._messages.pop(0)


class Hosted:
    """A host at work in a thread."""

    def __init__(self) -> None:
        ours, theirs = socket.socketpair()
        self.api, self.backend = ApiEnd(ours), ToyBackend()
        self.host = BackendHost(self.backend, max_waiting_requests=2)
        self.failure: BaseException | None = None
        self._channel = EngineChannel(theirs)
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def add(self, request_id: str, *token_ids: int) -> None:
        params = SamplingParams(max_tokens=9)
        request = GenerationRequest(
            request_id=request_id, prompt_token_ids=token_ids, params=params
        )
        self.api.send(AddRequest(request))

    def join(self) -> None:
        self._thread.join(10)
        assert not self._thread.is_alive()

    def _run(self) -> None:
        try:
            self.host.run(self._channel)
        except RuntimeError as error:
            self.failure = error


@pytest.fixture(name="hosted")
def _hosted() -> Iterator[Hosted]:
    hosted = Hosted()
    yield hosted
    hosted.api.send(Shutdown())
    hosted.join()


def tokens_of(message: FromEngine) -> tuple[str, tuple[int, ...]]:
    """Request and tokens of a step with one request."""
    assert isinstance(message, StepOutput)
    (output,) = message.requests
    return output.request_id, output.deltas[0].token_ids


def test_toy_is_a_backend() -> None:
    """What is hosted here has the shape that loaders must return."""
    assert isinstance(ToyBackend(), Backend)


def test_adapters_are_the_backends(hosted: Hosted) -> None:
    """Loading and unloading reach a backend that runs adapters, and each is answered."""
    hosted.api.send(LoadAdapter("tale", "/adapters/tale"))
    assert hosted.api.receive() == AdapterChanged()
    assert hosted.backend.adapters == {"tale": Path("/adapters/tale")}

    hosted.api.send(UnloadAdapter("tale"))
    assert hosted.api.receive() == AdapterChanged()
    assert hosted.backend.adapters == {}


def test_deltas_go_out_as_they_come(hosted: Hosted) -> None:
    """Each list of deltas is one message."""
    hosted.add("a", 5, 6)

    assert [tokens_of(hosted.api.receive()) for _ in range(2)] == [("a", (5,)), ("a", (6,))]


def test_aborting_ends_the_backend_s_generation(hosted: Hosted) -> None:
    """An abort closes the stream; one of a choice is passed on."""
    hosted.add("a", 7, 0)
    hosted.api.receive()
    assert hosted.host.heartbeat() == Heartbeat(0, True, 0)

    hosted.api.send(AbortRequest("a", 1))
    hosted.api.send(AbortRequest("a"))
    hosted.add("b", 8)
    hosted.api.receive()

    assert hosted.backend.aborted == [("a", 1), ("a", None)]


def test_too_many_requests_are_rejected(hosted: Hosted) -> None:
    """The waiting queue is bounded here too; a backend may refuse on its own."""
    hosted.add("a", 0)
    hosted.add("b", 0)
    hosted.add("c", 1)
    first = hosted.api.receive()
    hosted.api.send(AbortRequest("a"))
    hosted.add("d", 98)

    assert first == Rejected("c", "The waiting queue is full. Please try again later.")
    assert isinstance(hosted.api.receive(), StepOutput)  # the figures without "a"
    assert hosted.api.receive() == Rejected("d", "no room")


def test_end_of_the_api_process_closes_the_backend(hosted: Hosted) -> None:
    """`Shutdown` drops what runs and frees the model."""
    hosted.add("a", 7, 0)
    hosted.api.receive()
    hosted.api.send(Shutdown())
    hosted.join()

    assert hosted.backend.is_closed
    assert hosted.backend.aborted == [("a", None)]


def test_fault_of_the_backend_ends_the_engine(hosted: Hosted) -> None:
    """An exception in a generation is fatal, as one in a step is."""
    hosted.add("a", 99)
    hosted.join()

    assert str(hosted.failure) == "broken"
    assert hosted.backend.is_closed
