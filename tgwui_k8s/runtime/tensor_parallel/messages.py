"""What the engine tells its further ranks, through the standard input of each."""

from __future__ import annotations

from typing import BinaryIO

import msgspec

from tgwui_k8s.contract import Batch, LoadRequest

_LENGTH_BYTES = 4


class Load(msgspec.Struct, frozen=True, tag=True):
    """Meet the other ranks and load your share of the model. The first message."""

    request: LoadRequest
    loader: str
    device_type: str
    rank: int
    size: int
    meeting_file: str


class WarmUp(msgspec.Struct, frozen=True, tag=True):
    """Run what the runner runs to warm up."""


class Execute(msgspec.Struct, frozen=True, tag=True):
    """Compute a step."""

    batch: Batch


Message = Load | WarmUp | Execute

_encoder = msgspec.msgpack.Encoder()
_decoder = msgspec.msgpack.Decoder(Message)


def encode(message: Message) -> bytes:
    """The message as it goes through a pipe."""
    content = _encoder.encode(message)
    return len(content).to_bytes(_LENGTH_BYTES, "big") + content


def receive(pipe: BinaryIO) -> Message | None:
    """The next message; None when the other end has closed the pipe."""
    length = int.from_bytes(pipe.read(_LENGTH_BYTES), "big")
    content = pipe.read(length)
    return _decoder.decode(content) if length and len(content) == length else None
