"""Frames and both ends of the channel, over real socket pairs."""

from __future__ import annotations

import asyncio
import itertools
import socket
import threading
from collections.abc import Iterator

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tgwui_k8s.contract import (
    EngineStats,
    GenerationRequest,
    LoadProgress,
    LoadRequest,
    ModelInfo,
    TokenDelta,
    TopLogprobs,
)
from tgwui_k8s.engine.channel import (
    ApiChannel,
    ChannelClosedError,
    ChannelError,
    EngineChannel,
    FrameSplitter,
    encode_frame,
)
from tgwui_k8s.engine.messages import (
    AbortRequest,
    AddRequest,
    EngineSettings,
    FromEngine,
    Heartbeat,
    Load,
    Loaded,
    LoadFailed,
    Progress,
    Rejected,
    RequestDeltas,
    Shutdown,
    StepOutput,
    ToEngine,
)
from tgwui_k8s.sampling import SamplingParams

INFO = ModelInfo(
    loader="toy",
    architecture="Toy",
    dtype="float32",
    device="cpu",
    max_model_len=8,
    vocab_size=4,
    eos_token_ids=(0, 3),
    tokenizer_json=b"\x00{}",
    details={"layers": [1, 2]},
)
REQUEST = GenerationRequest(
    request_id="r1",
    prompt_token_ids=(1, 2, 3),
    params=SamplingParams(max_tokens=5, logit_bias={7: -1.5}, sampler_priority=("top_k",)),
    num_choices=2,
    resume_token_ids=((1,), ()),
)
LOGPROBS = TopLogprobs(3, -0.5, 1, (3, 4), (-0.5, -1.25))
DELTA = TokenDelta(1, (5, 6), "stop", 6, (LOGPROBS, LOGPROBS), (LOGPROBS,), 16, 0.25)

TO_ENGINE: list[ToEngine] = [
    Load(
        LoadRequest(model_path="/m", loader="fake", options={"a": "b"}),
        EngineSettings(max_num_seqs=4, max_waiting_requests=9),
    ),
    AddRequest(REQUEST),
    AbortRequest("r1"),
    AbortRequest("r1", 1),
]
FROM_ENGINE: list[FromEngine] = [
    Progress(LoadProgress("loading", 5, 10)),
    Loaded(INFO, EngineStats(num_steps=3), 1.5, 512),
    LoadFailed("BrokenModelError", "x is broken"),
    StepOutput([RequestDeltas("r1", [DELTA])], EngineStats(kv_cache_usage=0.5)),
    Rejected("r2", "full"),
    Heartbeat(7, True, 512),
]


@pytest.fixture(name="pair")
def _pair() -> Iterator[tuple[socket.socket, socket.socket]]:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        yield ours, theirs


class Listener:
    """Keeps what an `ApiChannel` says."""

    def __init__(self) -> None:
        self.messages: list[FromEngine] = []
        self.closed: asyncio.Future[Exception | None] = asyncio.get_running_loop().create_future()

    async def connect(self, connection: socket.socket) -> ApiChannel:
        return await ApiChannel.open(connection, self.messages.append, self.closed.set_result)


@given(
    payloads=st.lists(st.binary(max_size=300), max_size=8),
    cuts=st.lists(st.integers(min_value=0, max_value=2000), max_size=12),
)
def test_frames_are_found_however_the_stream_is_cut(payloads: list[bytes], cuts: list[int]) -> None:
    """The same payloads come out in order, wherever reads begin and end."""
    stream = b"".join(len(payload).to_bytes(4, "big") + payload for payload in payloads)
    edges = [0, *sorted(min(cut, len(stream)) for cut in cuts), len(stream)]
    splitter = FrameSplitter()

    found = [
        payload
        for start, stop in itertools.pairwise(edges)
        for payload in splitter.feed(stream[start:stop])
    ]

    assert found == payloads


def test_frame_over_the_limit_is_refused_before_it_is_read() -> None:
    """A length that cannot be honest raises at once, whatever would follow."""
    splitter = FrameSplitter(max_frame_bytes=100)

    with pytest.raises(ChannelError, match="101"):
        splitter.feed((101).to_bytes(4, "big"))


def test_messages_reach_the_engine_whole_and_in_order(
    pair: tuple[socket.socket, socket.socket],
) -> None:
    """Every message of the API process arrives equal to what was sent."""
    ours, theirs = pair
    engine = EngineChannel(theirs)

    ours.sendall(b"".join(encode_frame(message) for message in TO_ENGINE))

    assert [engine.receive() for _ in TO_ENGINE] == TO_ENGINE


async def test_messages_reach_the_api_process_whole_and_in_order(
    pair: tuple[socket.socket, socket.socket],
) -> None:
    """Every message of the engine arrives equal to what was sent, and before the end does."""
    ours, theirs = pair
    engine, listener = EngineChannel(theirs), Listener()
    await listener.connect(ours)

    for message in FROM_ENGINE:
        engine.send(message)
    engine.close()

    assert await listener.closed is None
    assert listener.messages == FROM_ENGINE


async def test_api_channel_sends_what_the_engine_receives(
    pair: tuple[socket.socket, socket.socket],
) -> None:
    """A message goes from the event loop to the thread that reads for the step loop."""
    ours, theirs = pair
    engine = EngineChannel(theirs)
    channel = await Listener().connect(ours)

    channel.send(AddRequest(REQUEST))

    assert await asyncio.to_thread(engine.receive) == AddRequest(REQUEST)
    channel.close()


def test_end_of_the_api_process_arrives_as_shutdown_after_its_messages(
    pair: tuple[socket.socket, socket.socket],
) -> None:
    """An engine whose API process is gone is told to stop."""
    ours, theirs = pair
    engine = EngineChannel(theirs)

    ours.sendall(encode_frame(AbortRequest("r1")))
    ours.close()

    assert engine.receive() == AbortRequest("r1")
    assert engine.receive() == Shutdown()


def test_sending_to_a_process_that_is_gone_raises(
    pair: tuple[socket.socket, socket.socket],
) -> None:
    """The step loop learns from the first message it cannot send."""
    ours, theirs = pair
    engine = EngineChannel(theirs)
    ours.close()

    with pytest.raises(ChannelClosedError):
        engine.send(FROM_ENGINE[0])


@pytest.mark.parametrize(
    "payload",
    [b"", b"\xc1", b"\x91\x01", msgspec.msgpack.encode({"type": "NoSuchMessage"})],
    ids=["empty", "no msgpack", "wrong shape", "unknown type"],
)
async def test_malformed_frames_end_the_channel_on_both_sides(
    payload: bytes, pair: tuple[socket.socket, socket.socket]
) -> None:
    """What is no message is an error for the API process and the end for the engine."""
    frame = len(payload).to_bytes(4, "big") + payload
    ours, theirs = pair
    listener = Listener()
    await listener.connect(ours)
    theirs.sendall(frame)
    to_engine, at_engine = socket.socketpair()
    engine = EngineChannel(at_engine)
    to_engine.sendall(frame)

    assert isinstance(await listener.closed, ChannelError)
    assert await asyncio.to_thread(engine.receive) == Shutdown()
    engine.close()
    to_engine.close()


def test_drain_takes_what_is_there_and_waits_only_when_asked(
    pair: tuple[socket.socket, socket.socket],
) -> None:
    """A busy engine never waits for messages; an idle one waits for the first."""
    ours, theirs = pair
    engine = EngineChannel(theirs)

    assert list(engine.drain(wait=False)) == []
    ours.sendall(encode_frame(AbortRequest("r1")))
    assert next(engine.drain(wait=True)) == AbortRequest("r1")


async def test_slow_reader_loses_nothing(pair: tuple[socket.socket, socket.socket]) -> None:
    """Far more than the socket holds waits in the sender until it is read, from two threads."""
    ours, theirs = pair
    engine, listener = EngineChannel(theirs), Listener()
    big = StepOutput([RequestDeltas("r", [TokenDelta(0, tuple(range(1000)))] * 5)], EngineStats())

    def send_many() -> None:
        for _ in range(100):
            engine.send(big)

    threads = [threading.Thread(target=send_many) for _ in range(2)]
    for thread in threads:
        thread.start()
    await listener.connect(ours)
    for thread in threads:
        await asyncio.to_thread(thread.join)
    engine.close()
    await listener.closed

    assert listener.messages == [big] * 200
