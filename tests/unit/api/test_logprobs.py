"""Log probabilities in the shapes of completions and chat."""

from __future__ import annotations

import math

import pytest

from tests.helpers.api_server import encode, tiny_tokenizer
from tgwui_k8s.api.logprobs import (
    LEAST_LOGPROB,
    chat_logprobs,
    completion_logprobs,
    prompt_text_offsets,
)
from tgwui_k8s.contract import TopLogprobs


def test_token_itself_is_among_the_alternatives_with_the_identical_float() -> None:
    """Also where it is not among the most likely ones."""
    top = TopLogprobs(70, -3.25, 9, (71, 72, 70), (-0.5, -1.5, -3.25))

    logprobs = completion_logprobs(tiny_tokenizer(), [70], [top], [0])

    (by_text,) = logprobs.top_logprobs
    assert by_text is not None
    assert list(by_text.values()) == [-0.5, -1.5, -3.25]
    assert by_text[logprobs.tokens[0]] == logprobs.token_logprobs[0] == -3.25


def test_impossible_tokens_have_a_finite_logprob() -> None:
    """JSON knows no infinity; OpenAI's word for it is -9999."""
    top = TopLogprobs(70, -math.inf, 2, (71, 70), (0.0, -math.inf))

    completion = completion_logprobs(tiny_tokenizer(), [70], [top], [0])
    chat = chat_logprobs(tiny_tokenizer(), [top], 2)

    assert completion.token_logprobs == [LEAST_LOGPROB]
    assert chat.content[0].logprob == LEAST_LOGPROB
    assert chat.content[0].top_logprobs[1].logprob == LEAST_LOGPROB


def test_chat_lists_as_many_alternatives_as_were_asked_for() -> None:
    """The token itself is listed only where it belongs to the most likely ones."""
    top = TopLogprobs(70, -3.25, 9, (71, 72, 70), (-0.5, -1.5, -3.25))

    (entry,) = chat_logprobs(tiny_tokenizer(), [top], 2).content

    assert [alternative.logprob for alternative in entry.top_logprobs] == [-0.5, -1.5]
    assert bytes(entry.bytes) == tiny_tokenizer().token_bytes(70)


@pytest.mark.parametrize("text", ["plain words", "größer 你好 als", ""])
def test_prompt_offsets_point_at_the_tokens(text: str) -> None:
    """A token begins where its text does; special tokens take no room where they are skipped."""
    token_ids = [0, *encode(text)]

    offsets = prompt_text_offsets(tiny_tokenizer(), token_ids, text, skip_special_tokens=True)

    assert offsets[:2] == [0, 0][: len(token_ids)]
    for token_id, offset in zip(token_ids[1:], offsets[1:], strict=True):
        piece = tiny_tokenizer().token_bytes(token_id).decode(errors="ignore")
        assert text[offset:].startswith(piece)
