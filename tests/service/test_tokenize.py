"""vLLM's own routes over HTTP."""

from __future__ import annotations

from typing import Any

import pytest

from tests.helpers.api_server import encode, tiny_tokenizer
from tests.helpers.app_client import app_client
from tests.helpers.still_backend import StillBackend, make_state
from tgwui_k8s.api.chat_template import DEFAULT, ChatTemplate
from tgwui_k8s.contract import TokenDelta

HI = [{"role": "user", "content": "hi"}]
TOOLS = [{"type": "function", "function": {"name": "get_weather"}}]


async def _post(path: str, body: dict[str, Any], backend: StillBackend | None = None) -> Any:
    async with app_client(make_state(backend)) as client:
        answer = await client.post(path, json=body)
    return answer.status_code, answer.json()


async def test_a_text_is_tokenized_in_vllms_shape() -> None:
    """Count, context length and tokens, with the sequence's beginning."""
    status, answer = await _post("/tokenize", {"prompt": "ab", "model": "still"})
    assert status == 200
    assert answer == {"count": 3, "max_model_len": 64, "tokens": [0, 70, 71], "token_strs": None}


async def test_without_special_tokens_and_with_texts() -> None:
    """Both fields change the answer."""
    body = {"prompt": "ab", "add_special_tokens": False, "return_token_strs": True}
    _, answer = await _post("/tokenize", body)
    assert (answer["tokens"], answer["token_strs"]) == ([70, 71], ["a", "b"])


@pytest.mark.parametrize(
    ("fields", "text"),
    [
        ({}, "<s><|user|>\nhi</s>\n<|assistant|>\n"),
        ({"add_generation_prompt": False}, "<s><|user|>\nhi</s>\n"),
        ({"add_special_tokens": True}, "<s><s><|user|>\nhi</s>\n<|assistant|>\n"),
    ],
)
async def test_messages_are_tokenized_as_the_template_renders_them(
    fields: dict[str, Any], text: str
) -> None:
    """The template writes its own special tokens, so none are added unless asked for."""
    body = {"messages": HI, **fields}
    _, answer = await _post("/tokenize", body)
    assert tiny_tokenizer().decode(answer["tokens"], skip_special_tokens=False) == text


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({}, "prompt"),
        ({"prompt": "a", "messages": [{"role": "user", "content": "x"}]}, "prompt"),
        ({"prompt": "a", "add_generation_prompt": True}, "add_generation_prompt"),
        ({"prompt": "a", "tools": TOOLS}, "tools"),
        ({"messages": HI, "tools": [{"type": "function"}]}, "tools.0.function"),
        ({"prompt": 5}, "prompt"),
        ({"prompt": "a", "extra": 1}, "extra"),
        ({"messages": []}, "messages"),
    ],
)
async def test_what_cannot_be_tokenized_is_named(body: dict[str, Any], param: str) -> None:
    """No field is ignored."""
    status, answer = await _post("/tokenize", body)
    assert (status, answer["error"]["param"]) == (400, param)


async def test_tools_are_part_of_the_prompt() -> None:
    """Counted as the model would read them."""
    state = make_state()
    assert state.model is not None
    template = "{{ messages[0].content }}{% for one in tools %}{{ one.function.name }}{% endfor %}"
    state.model.chat_template = ChatTemplate({DEFAULT: template}, {})
    async with app_client(state) as client:
        answer = await client.post("/tokenize", json={"messages": HI, "tools": TOOLS})
    assert tiny_tokenizer().decode(answer.json()["tokens"]) == "higet_weather"


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/tokenize", {"tools": TOOLS}),
        ("/v1/internal/chat-prompt", {"tools": TOOLS}),
        ("/v1/chat/completions", {"tools": TOOLS}),
        (
            "/v1/messages/count_tokens",
            {"model": "still", "tools": [{"name": "get_weather", "input_schema": {}}]},
        ),
    ],
)
async def test_tools_that_the_template_would_leave_out_are_refused(
    path: str, body: dict[str, Any]
) -> None:
    """Wherever a prompt is made: the tiny template knows none."""
    status, answer = await _post(path, {"messages": HI, **body})
    assert status == 400
    assert "'tools'" in answer["error"]["message"]
    assert answer["error"]["code"] == "unsupported_parameter"


async def test_tokens_become_text() -> None:
    """vLLM calls it `prompt`, and shows special tokens."""
    body = {"tokens": [0, *encode("größer")]}
    assert await _post("/detokenize", body) == (200, {"prompt": "<s>größer"})


@pytest.mark.parametrize("tokens", [[512], [-1], [2**40], ["a"], [[1]], "a", None])
async def test_what_is_no_token_of_the_model_is_refused(tokens: Any) -> None:
    """Ids outside the vocabulary and things that are no ids."""
    status, answer = await _post("/detokenize", {"tokens": tokens})
    assert status == 400
    assert answer["error"]["param"].startswith("tokens")


async def test_a_million_wrong_tokens_make_one_short_error() -> None:
    """The answer and the work stay small."""
    status, answer = await _post("/detokenize", {"tokens": ["x"] * 1_000_000})
    assert (status, len(answer["error"]["message"]) < 300) == (400, True)


async def test_generate_answers_with_prompt_and_completion() -> None:
    """vLLM's demonstration interface; sampling parameters stand beside the prompt."""
    said = [TokenDelta(i, tuple(encode(text)), "length") for i, text in enumerate(("Hi", "Ho"))]
    backend = StillBackend(*said)
    body = {"prompt": "ab", "n": 2, "max_tokens": 2, "temperature": 0.5}
    assert await _post("/generate", body, backend) == (200, {"text": ["abHi", "abHo"]})
    (request,) = backend.requests
    assert (request.params.max_tokens, request.params.temperature) == (2, 0.5)
    assert (request.num_choices, request.prompt_token_ids) == (2, (0, 70, 71))


@pytest.mark.parametrize(
    "fields", [{"stream": True}, {"return_token_ids": True}, {"max_tokens": 0}, {"echo": True}]
)
async def test_generate_refuses_what_its_shape_cannot_hold(fields: dict[str, Any]) -> None:
    """Streams and token ids have no place in it."""
    status, answer = await _post("/generate", {"prompt": "a", **fields})
    assert (status, answer["error"]["param"]) == (400, next(iter(fields)))
