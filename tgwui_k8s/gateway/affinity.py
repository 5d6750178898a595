"""Which endpoint a conversation belongs to, without anybody remembering it.

Rendezvous hashing: every (conversation, endpoint) pair has a random-looking weight, and the
endpoint with the largest wins. All gateway replicas agree, and an endpoint that joins or leaves
moves only its own share. Conversations are told apart by their beginning, which all their turns
have in common, and which is what an engine's prefix cache can have kept.
"""

from __future__ import annotations

from collections.abc import Iterable
from hashlib import blake2b

import msgspec

PREFIX_BYTES = 512
"""Of a completion's prompt: as much as makes it likely that two belong together."""

_DIGEST_BYTES = 8
_raw_list = msgspec.json.Decoder(list[msgspec.Raw])


def rendezvous_weight(key: bytes, uid: str) -> int:
    """The pair's weight."""
    return int.from_bytes(blake2b(uid.encode(), key=key, digest_size=_DIGEST_BYTES).digest(), "big")


def rank(key: bytes, uids: Iterable[str]) -> list[str]:
    """The endpoints in this conversation's order of preference."""
    return sorted(uids, key=lambda uid: rendezvous_weight(key, uid), reverse=True)


def conversation_key(model: str, beginning: bytes) -> bytes:
    """A key for `rank`."""
    return blake2b(beginning, key=model.encode()[:64], digest_size=16).digest()


def beginning_of(messages: bytes | None, prompt: bytes | None) -> bytes:
    """What all turns of a conversation have in common, of the JSON as it was sent.

    Of messages the first two: instructions and first question, or question and first answer.
    """
    if messages is not None:
        try:
            return b"".join(bytes(message) for message in _raw_list.decode(messages)[:2])
        except msgspec.DecodeError:
            return messages[:PREFIX_BYTES]
    return (prompt or b"")[:PREFIX_BYTES]
