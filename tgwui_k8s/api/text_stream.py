"""Token ids in, pieces of text out: one `TextStream` per choice of a request.

(Interface first; the implementation follows in the next commit.)
"""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from tgwui_k8s.api.tokenizer import Tokenizer


class TextPiece(msgspec.Struct, frozen=True):
    """What one `feed` sets free. Empty text and no ids: everything is held back."""

    text: str
    token_ids: tuple[int, ...]
    """Ids whose text this piece completes, in order. Over all pieces: every id that was fed."""
    token_offsets: tuple[int, ...]
    """For each of them, where its text begins (code points of raw generated text)."""
    text_offset: int
    """Code points of raw generated text before this piece."""
    stop_text: str | None
    """The stop string that ended the text; nothing may be fed any more."""


class TextStream:
    """Sans-IO; feed what `TokenDelta` brings and send what comes out.

        piece = stream.feed(
            delta.token_ids,
            final=delta.finish_reason is not None,
            stop_token_id=delta.stop_token_id,
        )

    * Concatenated `text` equals `tokenizer.decode` of prompt and completion less the prompt's text.
    * The last piece (`final=True`, or `stop_text` set) has all ids still held, the EOS or stop token
      and the tokens of the stop string among them: counting `token_ids` gives the usage.
      Ids fed after the one that completed a stop string (same `feed`) are dropped, not returned.
    * `stop_token_id` (the delta's): the last id fed ended the choice by itself; it adds no text
      unless `include_stop_text`.
    * Resume: `resume_token_ids` are replayed in the constructor and never returned in `token_ids`;
      text beyond `resume_text_length` comes out with the first `feed` (which may be `feed(())`),
      and so does a stop string that is already inside.
    """

    def __init__(
        self,
        tokenizer: Tokenizer,
        prompt_token_ids: Sequence[int],
        *,
        stop: Sequence[str] = (),
        skip_special_tokens: bool = True,
        include_stop_text: bool = False,
        min_tokens: int = 0,
        resume_token_ids: Sequence[int] = (),
        resume_text_length: int | None = None,
    ) -> None:
        """`stop`: non-empty strings. Stop strings complete before `min_tokens` tokens do not count.

        `resume_text_length`: code points of raw generated text the client already has; None means
        all the text that `resume_token_ids` complete.
        """
        raise NotImplementedError

    def feed(
        self, token_ids: Sequence[int], *, final: bool = False, stop_token_id: int | None = None
    ) -> TextPiece:
        """Take generated ids; give the text that can no longer change or become a stop string."""
        raise NotImplementedError
