"""What a loaded model cannot do is refused by name, before the engine is asked."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import httpx
import msgspec
import pytest

from tests.helpers.app_client import app_client
from tests.helpers.still_backend import StillBackend, make_state
from tgwui_k8s.contract import Capabilities, TokenDelta

ANSWER = TokenDelta(0, (7,), "length")


async def complete(backend: StillBackend, info: dict[str, Any], **fields: Any) -> httpx.Response:
    state = make_state(backend)
    assert state.model is not None
    state.model = replace(state.model, info=msgspec.structs.replace(state.model.info, **info))
    async with app_client(state) as client:
        body = {"prompt": [7, 8, 9], "max_tokens": 1, **fields}
        return await client.post("/v1/completions", json=body)


async def test_a_prompt_longer_than_the_largest_graph_is_refused() -> None:
    """Although the context has room for it."""
    backend = StillBackend(ANSWER)
    refused = await complete(backend, {"max_prompt_len": 2})
    error = refused.json()["error"]

    assert refused.status_code == 400
    assert error["code"] == "context_length_exceeded"
    assert error["param"] == "prompt"
    assert "at most 2 tokens" in error["message"]
    assert backend.requests == []
    assert (await complete(backend, {"max_prompt_len": 3})).status_code == 200


async def test_resumed_tokens_count_as_prompt() -> None:
    """They are computed with it."""
    backend = StillBackend(ANSWER)
    refused = await complete(
        backend, {"max_prompt_len": 4}, max_tokens=8, resume_token_ids=[[1, 2]]
    )

    assert refused.status_code == 400
    assert refused.json()["error"]["code"] == "context_length_exceeded"


@pytest.mark.parametrize(
    ("lacking", "fields", "param"),
    [
        ("min_p", {"min_p": 0.1}, "min_p"),
        ("repetition_penalty", {"repetition_penalty": 1.2}, "repetition_penalty"),
        ("logit_bias", {"logit_bias": {"7": 1}}, "logit_bias"),
        ("stop_token_ids", {"stop_token_ids": [7]}, "stop_token_ids"),
        ("temperature", {"temperature": 0.5}, "temperature"),
    ],
)
async def test_a_sampler_that_the_loader_lacks_is_refused(
    lacking: str, fields: dict[str, Any], param: str
) -> None:
    """And its neutral value is not."""
    backend = StillBackend(ANSWER)
    info = {"capabilities": Capabilities(unsupported_params=(lacking,))}
    refused = await complete(backend, info, **fields)

    assert refused.status_code == 400
    assert refused.json()["error"]["code"] == "unsupported_parameter"
    assert refused.json()["error"]["param"] == param
    assert (await complete(backend, info)).status_code == 200


async def test_guessing_ahead_is_refused_where_it_cannot_be_done() -> None:
    """A loader that computes prompts whole cannot compute guesses; 0 asks for nothing."""
    info = {"capabilities": Capabilities(prompt_lookup=False)}
    refused = await complete(StillBackend(ANSWER), info, prompt_lookup_num_tokens=4)

    assert refused.status_code == 400
    assert refused.json()["error"]["code"] == "unsupported_parameter"
    assert refused.json()["error"]["param"] == "prompt_lookup_num_tokens"
    allowed = await complete(StillBackend(ANSWER), info, prompt_lookup_num_tokens=0)
    assert allowed.status_code == 200


async def test_mirostat_cannot_resume_without_past_distributions() -> None:
    """Its state is made of them."""
    info = {"capabilities": Capabilities(prompt_logprobs=False)}
    fields = {"max_tokens": 8, "resume_token_ids": [[1, 2]]}
    refused = await complete(StillBackend(ANSWER), info, mirostat_mode=2, **fields)

    assert refused.status_code == 400
    assert refused.json()["error"]["param"] == "mirostat_mode"
    assert (await complete(StillBackend(ANSWER), info, **fields)).status_code == 200
