"""One body cannot keep the server from answering everybody else."""

from __future__ import annotations

import pytest
from pydantic import ValidationError

from tgwui_k8s.api.body import MAX_ARRAY_ITEMS, MAX_OBJECT_KEYS, parse_body
from tgwui_k8s.api.schemas.chat import ChatRequest
from tgwui_k8s.api.schemas.completions import CompletionRequest
from tgwui_k8s.api.schemas.fields import WireModel
from tgwui_k8s.api.schemas.internal import DecodeRequest, LoadModelRequest, LogitsRequest
from tgwui_k8s.api.schemas.tokenize import DetokenizeRequest, GenerateRequest, TokenizeRequest
from tgwui_k8s.errors import InvalidRequestError

SCHEMAS = (
    ChatRequest, CompletionRequest, DecodeRequest, DetokenizeRequest, GenerateRequest,
    LoadModelRequest, LogitsRequest, TokenizeRequest,
)  # fmt: skip

COUNT = 2000
WRONG_ARRAYS = (
    "[" + "{}," * COUNT + "{}]",
    "[" + "1.5," * COUNT + "1.5]",
    "[[" + '"a",' * COUNT + '"a"]]',
    "[" + '{"role":"x"},' * COUNT + "{}]",
    '[{"role":"user","content":[' + "{}," * COUNT + "{}]}]",
    '[{"role":"assistant","tool_calls":[' + "{}," * COUNT + "{}]}]",
)


def _num_complaints(schema: type[WireModel], raw: str) -> int:
    try:
        schema.model_validate_json(raw)
    except ValidationError as error:
        return error.error_count()
    return 0


@pytest.mark.parametrize("schema", SCHEMAS)
def test_an_array_of_wrong_items_is_one_complaint(schema: type[WireModel]) -> None:
    """Whatever field it is sent for: a million complaints would take gigabytes and a minute."""
    for name in schema.model_fields:
        for array in WRONG_ARRAYS:
            assert _num_complaints(schema, f'{{"{name}": {array}}}') < 20


@pytest.mark.parametrize(
    "raw",
    [
        b'{"prompt": [' + b"1," * (MAX_ARRAY_ITEMS + 1) + b"1]}",
        b'{"prompt": [' + b"1," * MAX_ARRAY_ITEMS + b'1], "user": "a,b"}',
        b"{" + b",".join(b'"%x":1' % i for i in range(MAX_OBJECT_KEYS + 1)) + b"}",
        b'{"prompt": [' + b'"",' * (MAX_ARRAY_ITEMS + 1) + b'""]}',
    ],
)
def test_more_values_than_any_request_has_are_refused(raw: bytes) -> None:
    """Before anything is made of them."""
    with pytest.raises(InvalidRequestError, match="too many values"):
        parse_body(raw, CompletionRequest)


@pytest.mark.parametrize(
    "text",
    [
        "," * (MAX_ARRAY_ITEMS + 1),
        ":" * (MAX_OBJECT_KEYS + 1),
        '\\",:' * (MAX_ARRAY_ITEMS + 1),
        "\\\\" * 9 + '\\":,' * (MAX_ARRAY_ITEMS + 1) + "\\\\",
    ],
)
def test_punctuation_in_a_text_does_not_count(text: str) -> None:
    """A long prompt may be all commas, colons, quotes and backslashes."""
    request = parse_body(f'{{"prompt": "{text}"}}'.encode(), CompletionRequest)
    assert len(request.prompts) == 1


def test_as_many_tokens_as_a_long_prompt_has_are_fine() -> None:
    """100,000 token ids, longer than most contexts."""
    request = parse_body(b'{"prompt": [' + b"1," * 99_999 + b"1]}", CompletionRequest)
    assert len(request.prompts[0]) == 100_000
