"""What each token id adds to the text, for decoders where that depends on the token alone.

Byte-level BPE stands for bytes; so do the byte tokens (`<0xE2>`) of SentencePiece models. All
other tokens stand for whole characters, which only at the very start of a text may differ: there
Metaspace and Strip drop the space that `▁` means. Which decoders are of this kind is decided by
their structure (`is_concatenative`); the rest need the library's decoder and a window of tokens.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Collection
from typing import Any

import tokenizers

Piece = bytes | str
"""`bytes` join with the bytes of their neighbours into characters; `str` are whole characters."""

_BYTE_TOKEN = re.compile(r"<0x([0-9A-Fa-f]{2})>")
_ANCHOR = "a"
"""A token in front, so that the decoder does not take the next one for the start of the text."""

_PRINTABLE_BYTES = (*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100))
_OTHER_BYTES = tuple(byte for byte in range(256) if byte not in _PRINTABLE_BYTES)
BYTE_OF_CHARACTER = {chr(byte): byte for byte in _PRINTABLE_BYTES} | {
    chr(0x100 + index): byte for index, byte in enumerate(_OTHER_BYTES)
}
"""Byte-level BPE's alphabet: printable bytes as themselves, the rest from U+0100 on."""


def decoder_steps(backend: tokenizers.Tokenizer) -> list[dict[str, Any]]:
    """The tokenizer's decoder as a flat list of its steps in the library's JSON; empty for none."""
    if backend.decoder is None:
        return []
    return _flatten(json.loads(backend.decoder.__getstate__()))


def _flatten(step: dict[str, Any]) -> list[dict[str, Any]]:
    if step["type"] != "Sequence":
        return [step]
    return [inner for outer in step["decoders"] for inner in _flatten(outer)]


def is_byte_level(steps: list[dict[str, Any]]) -> bool:
    """True where every token stands for bytes."""
    types = [step["type"] for step in steps]
    return types[:1] == ["ByteLevel"] and all(kind == "Fuse" for kind in types[1:])


def is_concatenative(steps: list[dict[str, Any]]) -> bool:
    """True where a token that is not the first adds the same text wherever it stands.

    Holds for all steps that look at one token at a time; after `Fuse` a step sees the whole text,
    so there only one-character replacements and cutting one character off the start are safe.
    """
    fused = False
    for step in steps:
        kind = step["type"]
        if kind == "Fuse":
            fused = True
        elif kind == "Strip":
            if (fused and step["stop"] != 0) or step["start"] > 1:
                return False
        elif kind == "Replace":
            if fused and len(step["pattern"].get("String", "")) != 1:
                return False
        elif kind not in ("ByteFallback", "Metaspace", "WordPiece") or fused:
            return False
    return True


class TokenPieces(dict[int, "Piece | None"]):
    """Token id to its piece, filled as ids are asked for; None where an id has no text.

    `skipped` ids have none by decree (special tokens), unknown ids have none by nature.
    """

    def __init__(self, backend: tokenizers.Tokenizer, skipped: Collection[int] = ()) -> None:
        super().__init__(dict.fromkeys(skipped))
        steps = decoder_steps(backend)
        self._backend = backend
        self._byte_level = is_byte_level(steps)
        self._byte_fallback = any(step["type"] == "ByteFallback" for step in steps)
        self._join: Callable[[list[str]], str] = (
            backend.decoder.decode if backend.decoder is not None else " ".join
        )
        self._anchor_length = len(self._join([_ANCHOR]))

    @property
    def replaces_each_byte(self) -> bool:
        """Whether each byte that is no text shows as a U+FFFD of its own.

        So it is in SentencePiece; byte-level BPE writes one for what could have been a character.
        """
        return self._byte_fallback

    def __missing__(self, token_id: int) -> Piece | None:
        piece = self._piece(token_id)
        self[token_id] = piece
        return piece

    def at_start(self, token_id: int) -> Piece | None:
        """The piece of an id when nothing stands before it."""
        piece = self[token_id]
        token = token_string(self._backend, token_id)
        if piece is None or token is None or self._byte_level:
            return piece
        if isinstance(piece, bytes) and not piece.isascii():
            return piece
        return self._join([token])

    def _piece(self, token_id: int) -> Piece | None:
        token = token_string(self._backend, token_id)
        if token is None:
            return None
        if self._byte_level:
            return byte_level_bytes(token)
        if self._byte_fallback and (match := _BYTE_TOKEN.fullmatch(token)):
            return bytes.fromhex(match[1])
        return self._join([_ANCHOR, token])[self._anchor_length :]


def token_string(backend: tokenizers.Tokenizer, token_id: int) -> str | None:
    """The vocabulary's string for an id; None for ids it does not have."""
    try:
        token: str | None = backend.id_to_token(token_id)
    except OverflowError:
        return None
    return token


def byte_level_bytes(token: str) -> bytes:
    """The bytes of a byte-level token; one with foreign characters stands for itself."""
    try:
        return bytes([BYTE_OF_CHARACTER[character] for character in token])
    except KeyError:
        return token.encode()
