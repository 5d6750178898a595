"""Log probabilities in the two shapes clients know: parallel lists, and a list of objects."""

from __future__ import annotations

from collections.abc import Sequence

from tgwui_k8s.api.schemas.responses import (
    ChatLogprobs,
    CompletionLogprobs,
    TokenLogprob,
    TopLogprob,
)
from tgwui_k8s.api.tokenizer import Tokenizer
from tgwui_k8s.contract import TopLogprobs

LEAST_LOGPROB = -9999.0
"""OpenAI's word for "next to impossible"; JSON has no infinity."""


def completion_logprobs(
    tokenizer: Tokenizer,
    token_ids: Sequence[int],
    logprobs: Sequence[TopLogprobs | None],
    text_offsets: Sequence[int],
) -> CompletionLogprobs:
    """`logprobs[i]` belongs to `token_ids[i]`, None where there is none: a prompt's first token."""
    return CompletionLogprobs(
        [tokenizer.token_text(token_id) for token_id in token_ids],
        [None if top is None else _finite(top.logprob) for top in logprobs],
        [None if top is None else _by_text(tokenizer, top) for top in logprobs],
        list(text_offsets),
    )


def chat_logprobs(
    tokenizer: Tokenizer, logprobs: Sequence[TopLogprobs], num_top: int
) -> ChatLogprobs:
    """`num_top` alternatives per token."""
    return ChatLogprobs([_chat_logprob(tokenizer, top, num_top) for top in logprobs])


def prompt_text_offsets(
    tokenizer: Tokenizer, token_ids: Sequence[int], text: str, *, skip_special_tokens: bool
) -> list[int]:
    """Where each token of a prompt begins in its text, in code points.

    A token that begins inside a character begins, for this purpose, after it.
    """
    offsets, offset = [], 0
    for token_id in token_ids:
        offsets.append(min(offset, len(text)))
        if not (skip_special_tokens and token_id in tokenizer.special_token_ids):
            offset += sum(byte & 0xC0 != 0x80 for byte in tokenizer.token_bytes(token_id))
    return offsets


def _by_text(tokenizer: Tokenizer, top: TopLogprobs) -> dict[str, float]:
    """Texts of different tokens may be equal: the likelier one stands, the token itself wins."""
    by_text: dict[str, float] = {}
    for token_id, logprob in zip(top.token_ids, top.logprobs, strict=True):
        by_text.setdefault(tokenizer.token_text(token_id), _finite(logprob))
    by_text[tokenizer.token_text(top.token_id)] = _finite(top.logprob)
    return by_text


def _chat_logprob(tokenizer: Tokenizer, top: TopLogprobs, num_top: int) -> TokenLogprob:
    alternatives = [
        TopLogprob(
            tokenizer.token_text(token_id),
            _finite(logprob),
            list(tokenizer.token_bytes(token_id)),
        )
        for token_id, logprob in zip(top.token_ids[:num_top], top.logprobs[:num_top], strict=True)
    ]
    return TokenLogprob(
        tokenizer.token_text(top.token_id),
        _finite(top.logprob),
        list(tokenizer.token_bytes(top.token_id)),
        alternatives,
    )


def _finite(logprob: float) -> float:
    return max(logprob, LEAST_LOGPROB)
