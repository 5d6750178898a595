"""Fields of responses and embeddings: honoured or refused by name, never ignored."""

from __future__ import annotations

import re
import struct
from collections.abc import Iterator
from typing import Any

import msgspec
import pytest

from tests.helpers.api_server import ApiServer, encode, serving
from tests.helpers.fake_backend import FakeBackend, fake_info
from tgwui_k8s.api.field_table import FieldRow, field_table
from tgwui_k8s.contract import Capabilities, EmbeddingRequest

PATHS = {"responses": "/v1/responses", "embeddings": "/v1/embeddings"}
USER: dict[str, Any] = {"type": "message", "role": "user", "content": "Hi."}
PART: dict[str, Any] = {"type": "input_text", "text": "Hi."}
CALL: dict[str, Any] = {"type": "function_call", "call_id": "c1", "name": "f", "arguments": "{}"}
OUTPUT: dict[str, Any] = {"type": "function_call_output", "call_id": "c1", "output": "Yes."}
TOOL: dict[str, Any] = {"type": "function", "name": "f", "parameters": {"type": "object"}}
FORMAT: dict[str, Any] = {"type": "json_schema", "name": "a", "schema": {"type": "object"}}
BASES: dict[str, dict[str, Any]] = {
    "responses": {"input": [USER], "max_output_tokens": 12},
    "embeddings": {"input": "Hi."},
}
TEMPLATE = (
    "{# <tool_call> #}{{ tools | tojson if tools else '' }}{{ enable_thinking }}"
    "{% for message in messages %}{{ message | tojson }}{% endfor %}"
)
"""Shows what it was given, as Hermes' tool calls are told: <tool_call>."""


def items(*changed: dict[str, Any]) -> dict[str, Any]:
    """A body with these items."""
    return {"input": list(changed)}


def tool(**fields: Any) -> dict[str, Any]:
    """A body with one tool."""
    return {"tools": [{**TOOL, **fields}]}


def text_format(**fields: Any) -> dict[str, Any]:
    """A body that asks for JSON."""
    return {"text": {"format": {**FORMAT, **fields}}}


NAMED = {"type": "function", "name": "f"}
EXAMPLES: dict[str, dict[str, Any] | tuple[dict[str, Any], dict[str, Any]]] = {
    # Field to what to add to the body, or to bodies without and with the field.
    "model": {"model": "unknown"},
    "encoding_format": {"encoding_format": "base64"},
    "dimensions": {"dimensions": 2},
    "input[].type": (items(CALL), items({**CALL, "type": "function_call_output", "output": "a"})),
    "input[].role": items({**USER, "role": "developer"}),
    "input[].content": items({**USER, "content": "Bye."}),
    "input[].content[].type": items({**USER, "content": [{"type": "output_text", "text": "!"}]}),
    "input[].content[].text": items({**USER, "content": [{**PART, "text": "Bye."}]}),
    "input[].output[].type": (items(OUTPUT), items({**OUTPUT, "output": [PART]})),
    "input[].output[].text": (items(OUTPUT), items({**OUTPUT, "output": [PART]})),
    "input[].call_id": (items(CALL), items({**CALL, "call_id": "c2"})),
    "input[].name": (items(CALL), items({**CALL, "name": "g"})),
    "input[].arguments": (items(CALL), items({**CALL, "arguments": '{"a": 1}'})),
    "input[].output": (items(OUTPUT), items({**OUTPUT, "output": "No."})),
    "instructions": {"instructions": "Be short."},
    "max_output_tokens": {"max_output_tokens": 3},
    "temperature": {"temperature": 0.5},
    "top_p": {"top_p": 0.5},
    "tools": tool(),
    "tools[].type": tool(),
    "tools[].name": (tool(), tool(name="g")),
    "tools[].description": (tool(), tool(description="Does it.")),
    "tools[].parameters": (
        tool(),
        tool(parameters={"type": "object", "properties": {"a": {"type": "string"}}}),
    ),
    "tools[].strict": (tool(), tool(strict=True)),
    "tool_choice": (tool(), {**tool(), "tool_choice": "required"}),
    "tool_choice.type": (tool(), {**tool(), "tool_choice": NAMED}),
    "tool_choice.name": (tool(), {**tool(), "tool_choice": NAMED}),
    "parallel_tool_calls": (
        {**tool(), "tool_choice": "required"},
        {**tool(), "tool_choice": "required", "parallel_tool_calls": False},
    ),
    "text": text_format(),
    "text.format": text_format(),
    "text.format.type": ({"text": {"format": {"type": "text"}}}, text_format()),
    "text.format.name": (text_format(), text_format(name="b")),
    "text.format.description": (text_format(), text_format(description="A city.")),
    "text.format.schema": (
        text_format(),
        text_format(schema={"type": "object", "additionalProperties": False}),
    ),
    "text.format.strict": (text_format(), text_format(strict=True)),
    "reasoning": {"reasoning": {"effort": "none"}},
    "reasoning.effort": {"reasoning": {"effort": "none"}},
    "stream": {"stream": True},
    "metadata": {"metadata": {"team": "red"}},
}
DIFFERENT_BY_ENDPOINT = {
    ("embeddings", "input"): {"input": [7, 8]},
    ("responses", "input"): {"input": "Bye."},
}
HINTS: dict[str, Any] = {
    "user": {"user": "ann"},
    "safety_identifier": {"safety_identifier": "ann"},
    "prompt_cache_key": {"prompt_cache_key": "ann"},
    "service_tier": {"service_tier": "auto"},
    "include": {"include": ["reasoning.encrypted_content"]},
    "input[].id": items({**USER, "id": "msg_1"}),
    "input[].status": items({**USER, "status": "completed"}),
    "input[].phase": items({**USER, "phase": "final_answer"}),
    "input[].summary": items({**USER, "summary": []}),
    "input[].content[].annotations": items({**USER, "content": [{**PART, "annotations": []}]}),
    "input[].content[].logprobs": items({**USER, "content": [{**PART, "logprobs": []}]}),
    "input[].output[].annotations": (
        items({**OUTPUT, "output": [PART]}),
        items({**OUTPUT, "output": [{**PART, "annotations": []}]}),
    ),
    "input[].output[].logprobs": (
        items({**OUTPUT, "output": [PART]}),
        items({**OUTPUT, "output": [{**PART, "logprobs": []}]}),
    ),
}

WALK = [(endpoint, row) for row in field_table() for endpoint in row.endpoints if endpoint in PATHS]


def rows(status: str) -> list[Any]:
    """Endpoint and field for every field of that status."""
    return [
        pytest.param(endpoint, row, id=f"{endpoint}-{row.name}")
        for endpoint, row in WALK
        if row.status == status
    ]


class EmbeddingBackend(FakeBackend):
    """Its vectors are the first tokens of the texts."""

    async def embed(self, request: EmbeddingRequest) -> bytes:
        """Four numbers per text."""
        self.requests.append(request)  # type: ignore[arg-type]
        rows = [(*token_ids, 1, 1, 1, 1)[:4] for token_ids in request.token_id_lists]
        return b"".join(struct.pack("4f", *row) for row in rows)


@pytest.fixture(scope="module", name="server")
def _server() -> Iterator[ApiServer]:
    script = [*encode("It was so."), 1]
    info = fake_info(
        max_model_len=2000,
        capabilities=Capabilities(grammar=True, embeddings=True),
        embedding_sizes=(4, 2),
    )
    backend = EmbeddingBackend(lambda request, index: script * 20, info=info)
    with serving(backend, template=TEMPLATE) as server:
        yield server


def outcome(server: ApiServer, endpoint: str, change: dict[str, Any]) -> tuple[Any, ...]:
    """What the engine was asked and what the client got, less what is new every time."""
    first = len(server.backend.requests)
    response = server.post(PATHS[endpoint], {**BASES[endpoint], **change})
    asked = []
    for request in server.backend.requests[first:]:
        fields = msgspec.structs.asdict(request)
        fields.pop("request_id")
        if "params" in fields:
            fields["params"] = msgspec.structs.replace(fields["params"], seed=0)
        asked.append(fields)
    text = re.sub(r"(_|-)[0-9a-f]{32}", "", response.text)
    return response.status_code, asked, re.sub(r'"created_at":\d+', "", text)


def pair(
    examples: dict[str, Any], endpoint: str, name: str
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Bodies without and with the field."""
    example = DIFFERENT_BY_ENDPOINT.get((endpoint, name)) or examples[name]
    return example if isinstance(example, tuple) else ({}, example)


@pytest.mark.parametrize(("endpoint", "row"), rows("honoured"))
def test_honoured_field_changes_the_answer(server: ApiServer, endpoint: str, row: FieldRow) -> None:
    """Either the engine is asked for something else or the client gets something else."""
    without, with_field = pair(EXAMPLES, endpoint, row.name)

    plain = outcome(server, endpoint, without)
    changed = outcome(server, endpoint, with_field)

    assert plain[0] == 200, plain
    assert changed != plain
    assert changed[0] == 200 or row.name == "model", changed


@pytest.mark.parametrize(("endpoint", "row"), rows("accepted"))
def test_only_known_hints_have_no_effect(server: ApiServer, endpoint: str, row: FieldRow) -> None:
    """They change nothing, and there are no others."""
    without, with_field = pair(HINTS, endpoint, row.name)
    if row.name.startswith("input[].content[]"):
        without = items({**USER, "content": [PART]})

    plain = outcome(server, endpoint, without)

    assert plain[0] == 200, plain
    assert outcome(server, endpoint, with_field) == plain


@pytest.mark.parametrize(("endpoint", "row"), rows("refused"))
def test_refused_field_is_named_unless_it_is_neutral(
    server: ApiServer, endpoint: str, row: FieldRow
) -> None:
    """Neutral values change nothing in the engine; anything else is a 400 and reaches none."""
    neutral_values = list(msgspec.json.decode(f"[{row.type}]"))
    for neutral in neutral_values:
        status, asked, _ = outcome(server, endpoint, body_with(row.name, neutral))
        assert status == 200
        assert asked == outcome(server, endpoint, body_with(row.name, None))[1]
    for value in ({"a": 1}, "something", 3, True, [1]):
        status, asked, answer = outcome(server, endpoint, body_with(row.name, value))

        assert status == 400, answer
        assert asked == []
        error = msgspec.json.decode(answer)["error"]
        assert (error["code"], error["param"]) == (
            "unsupported_parameter",
            row.name.replace("[]", ".0"),
        )


def body_with(name: str, value: Any) -> dict[str, Any]:
    """A body whose field of that name has this value."""
    parents, _, last = name.rpartition(".")
    if parents == "input[]":
        return items({**USER, last: value})
    if parents == "tools[]":
        return tool(**{last: value})
    return {parents: {last: value}} if parents else {name: value}


def test_every_example_is_of_a_field() -> None:
    """No example outlives its field."""
    names = {row.name for _, row in WALK}

    assert names >= EXAMPLES.keys()
    assert names >= HINTS.keys()
