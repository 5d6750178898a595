"""Text that no context has room for costs a slice of itself, whichever route it comes to."""

from __future__ import annotations

from typing import Any

import httpx
import pytest

from tests.helpers.api_server import MODEL, make_backend, make_state
from tests.helpers.app_client import app_client
from tests.helpers.fake_backend import fake_info
from tgwui_k8s.api import prompt_tokens
from tgwui_k8s.api.tokenizer import _SLICE_CHARACTERS, Tokenizer
from tgwui_k8s.contract import Capabilities

LONG = "The quick brown fox. " * 30_000
"""Over 256 K characters; the context has 200 tokens."""
SAYS_LONG = [{"role": "user", "content": LONG}]
TOO_LONG: list[tuple[str, dict[str, Any], str]] = [
    ("/v1/completions", {"prompt": LONG}, "prompt"),
    ("/v1/completions", {"prompt": ["a", LONG]}, "prompt"),
    (
        "/v1/completions",
        {"prompt": "a", "negative_prompt": LONG, "guidance_scale": 2},
        "negative_prompt",
    ),
    ("/v1/chat/completions", {"messages": SAYS_LONG}, "messages"),
    ("/v1/messages", {"model": MODEL, "messages": SAYS_LONG, "max_tokens": 1}, "messages"),
    ("/generate", {"prompt": LONG}, "prompt"),
    ("/v1/internal/logits", {"prompt": LONG}, "prompt"),
    ("/v1/embeddings", {"input": LONG}, "input"),
]
TOO_LONG_TO_COUNT: list[tuple[str, dict[str, Any], str]] = [
    ("/tokenize", {"prompt": LONG}, "prompt"),
    ("/tokenize", {"messages": SAYS_LONG}, "messages"),
    ("/v1/internal/encode", {"text": LONG}, "text"),
    ("/v1/internal/token-count", {"text": LONG}, "text"),
    ("/v1/messages/count_tokens", {"model": MODEL, "messages": SAYS_LONG}, "messages"),
    ("/v1/completions", {"prompt": LONG, "truncation_length": 5}, "prompt"),
]


@pytest.fixture(name="lengths")
def _lengths(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Characters of every text that is given to the library."""
    lengths: list[int] = []
    encode = Tokenizer._encode

    def counted(self: Tokenizer, text: str, add_special_tokens: bool) -> list[int]:
        lengths.append(len(text))
        return encode(self, text, add_special_tokens)

    monkeypatch.setattr(Tokenizer, "_encode", counted)
    return lengths


def client(path: str) -> httpx.AsyncClient:
    embeds = path == "/v1/embeddings"
    info = fake_info(
        capabilities=Capabilities(generation=not embeds, embeddings=embeds), embedding_sizes=(4,)
    )
    return app_client(make_state(make_backend(info=info)))


async def refused_param(path: str, body: dict[str, Any]) -> str | None:
    answer = await client(path).post(path, json=body)
    assert answer.status_code == 400, answer.text
    error = answer.json()["error"]
    assert error["code"] == "context_length_exceeded"
    return str(error.get("param", "messages"))  # Anthropic's envelope has none


@pytest.mark.parametrize(("path", "body", "param"), TOO_LONG)
async def test_text_far_beyond_the_context_is_refused_unencoded(
    path: str, body: dict[str, Any], param: str, lengths: list[int]
) -> None:
    """The library needs 200 bytes for a token: 16 MiB of text would take gigabytes."""
    assert await refused_param(path, body) == param
    assert max(lengths) <= _SLICE_CHARACTERS


@pytest.mark.parametrize(("path", "body", "param"), TOO_LONG_TO_COUNT)
async def test_text_beyond_the_context_can_be_counted_and_cut_within_bounds(
    path: str,
    body: dict[str, Any],
    param: str,
    lengths: list[int],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """How long it is may be the very question; what is larger still is refused unencoded."""
    counted = await client(path).post(path, json=body)
    assert counted.status_code == 200, counted.text

    lengths.clear()
    monkeypatch.setattr(prompt_tokens, "MAX_COUNTED_TOKENS", 1000)
    assert await refused_param(path, body) == param
    assert max(lengths) <= _SLICE_CHARACTERS
