"""The model's tokenizer for the API process: the `tokenizers` library, no torch, no transformers.

(Interface first; the implementation follows in the next commit.)
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path


class Tokenizer:
    """Text to token ids and back. Safe to use from several threads; `encode` releases the GIL."""

    vocab_size: int
    bos_token_id: int | None
    eos_token_ids: tuple[int, ...]
    """Of the tokenizer's files; the model's own list is `ModelInfo.eos_token_ids`."""
    special_token_ids: frozenset[int]
    special_tokens: dict[str, str]
    """`bos_token`, `eos_token`, ... for the chat template."""

    @classmethod
    def load(cls, folder: Path, *, tokenizer_json: bytes | None = None) -> Tokenizer:
        """Read tokenizer.json (or take `tokenizer_json`) and the files beside it.

        Raises `BrokenModelError`.
        """
        raise NotImplementedError

    def encode(
        self, text: str, *, add_special_tokens: bool = True, add_bos: bool | None = None
    ) -> list[int]:
        """Token ids of `text`. `add_bos`: None as the tokenizer does, True exactly one, False none.

        A rendered chat: `encode(prompt, add_special_tokens=False, add_bos=request.add_bos_token)`,
        as Transformers does: the template writes its own BOS. Raises `InvalidRequestError` for
        text that is no valid Unicode (lone surrogates).
        """
        raise NotImplementedError

    def decode(self, token_ids: Sequence[int], *, skip_special_tokens: bool = True) -> str:
        """Text of the ids, the same as `TextStream` gives; unknown ids have no text."""
        raise NotImplementedError

    def token_bytes(self, token_id: int) -> bytes:
        """The bytes the token stands for (logprobs' `bytes`); may be part of a character."""
        raise NotImplementedError

    def token_text(self, token_id: int) -> str:
        """Printable form (logprobs' `token`): its text, or `bytes:\\xe2\\x80` for partial characters."""
        raise NotImplementedError

    def sequence_breaker_ids(self, breakers: Sequence[str]) -> tuple[int, ...]:
        """For DRY: of each breaker the last token of "a" + breaker, without repeats."""
        raise NotImplementedError
