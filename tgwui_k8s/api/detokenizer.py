"""Text from one token at a time, never half a character.

The text is that of all tokens together in the context of the prompt. Bytes that may still become
a character wait for the next token; `flush` gives U+FFFD for those that never did.
"""

from __future__ import annotations

from codecs import utf_8_decode
from collections.abc import Collection, Sequence
from typing import Protocol

import tokenizers

from tgwui_k8s.api.token_pieces import TokenPieces, token_string

REPLACEMENT = "\ufffd"
_MAX_CHARACTER_BYTES = 4


class Detokenizer(Protocol):
    """One per sequence of tokens."""

    @property
    def is_pending(self) -> bool:
        """True while the tokens taken so far end in a part of a character."""
        ...

    def prime(self, token_ids: Sequence[int]) -> None:
        """Take the prompt: the context of what follows, whose own text is not wanted."""
        ...

    def step(self, token_id: int) -> str:
        """Take one token; give the characters it completes."""
        ...

    def flush(self) -> str:
        """End the text: give what stands for the bytes still waiting."""
        ...


class PieceDetokenizer:
    """Puts the pieces of tokens together; exact and without a call into the library."""

    def __init__(self, pieces: TokenPieces) -> None:
        self._pieces = pieces
        self._pending = b""
        self._at_start = True

    @property
    def is_pending(self) -> bool:
        return bool(self._pending)

    def prime(self, token_ids: Sequence[int]) -> None:
        # A character that the prompt leaves unfinished lies in its last bytes.
        tail: list[int] = []
        for token_id in reversed(token_ids):
            if self._pieces[token_id] is not None:
                tail.append(token_id)
                if len(tail) == _MAX_CHARACTER_BYTES:
                    break
        for token_id in reversed(tail):
            self.step(token_id)

    def step(self, token_id: int) -> str:
        piece = self._pieces.at_start(token_id) if self._at_start else self._pieces[token_id]
        if piece is None:
            return ""
        self._at_start = False
        if isinstance(piece, str):
            return self.flush() + piece if self._pending else piece
        return self._decode(self._pending + piece)

    def flush(self) -> str:
        pending, self._pending = self._pending, b""
        if self._pieces.replaces_each_byte:
            return REPLACEMENT * len(pending)
        return pending.decode("utf-8", "replace")

    def _decode(self, data: bytes) -> str:
        """Characters that `data` completes; the rest of it is pending afterwards."""
        replaced = ""
        while True:
            try:
                text, num_decoded = utf_8_decode(data, "strict", False)
            except UnicodeDecodeError as error:
                self._pending = data[error.start : error.end]
                replaced += data[: error.start].decode() + self.flush()
                data = data[error.end :]
            else:
                self._pending = data[num_decoded:]
                return replaced + text


class WindowDetokenizer:
    """For decoders that look at neighbours: decodes the last tokens with the new one each time."""

    def __init__(self, backend: tokenizers.Tokenizer, skipped: Collection[int] = ()) -> None:
        self._backend = backend
        self._skipped = skipped
        self._context: list[int] = []
        self._waiting: list[int] = []

    @property
    def is_pending(self) -> bool:
        return bool(self._waiting)

    def prime(self, token_ids: Sequence[int]) -> None:
        for token_id in reversed(token_ids):
            if self._has_text(token_id):
                self._context.insert(0, token_id)
                is_whole = not self._decode(self._context).startswith(REPLACEMENT)
                if is_whole or len(self._context) == _MAX_CHARACTER_BYTES:
                    break

    def step(self, token_id: int) -> str:
        if not self._has_text(token_id):
            return ""
        self._waiting.append(token_id)
        text = self._new_text()
        if text.endswith(REPLACEMENT) and len(self._waiting) < _MAX_CHARACTER_BYTES:
            return ""
        return self._advance(text)

    def flush(self) -> str:
        return self._advance(self._new_text()) if self._waiting else ""

    def _has_text(self, token_id: int) -> bool:
        return token_id not in self._skipped and token_string(self._backend, token_id) is not None

    def _new_text(self) -> str:
        return self._decode(self._context + self._waiting)[len(self._decode(self._context)) :]

    def _advance(self, text: str) -> str:
        # Whole characters: a context that began inside one would spoil the next.
        self._context, self._waiting = self._waiting, []
        return text

    def _decode(self, token_ids: list[int]) -> str:
        text: str = self._backend.decode(token_ids, skip_special_tokens=False)
        return text
