"""Responses through the official client and on the wire."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import openai
import pytest

from tests.helpers.api_server import (
    MODEL,
    ApiServer,
    make_backend,
    said,
    serving,
    tiny_tokenizer,
)
from tests.helpers.fake_backend import fake_info
from tgwui_k8s.errors import EngineUnavailableError

PATH = "/v1/responses"
BODY: dict[str, Any] = {"model": MODEL, "input": "How?", "max_output_tokens": 8}
PRINTS_EVERYTHING = "{% for message in messages %}{{ message | tojson }}\n{% endfor %}"


def last_prompt(server: ApiServer) -> str:
    """What the engine was asked last, as text."""
    token_ids = server.backend.requests[-1].prompt_token_ids
    return tiny_tokenizer().decode(token_ids, skip_special_tokens=False)


@pytest.fixture(scope="module", name="server")
def _server() -> Iterator[ApiServer]:
    with serving(make_backend()) as server:
        yield server


@pytest.fixture(scope="module", name="brief")
def _brief() -> Iterator[ApiServer]:
    """A model that says one word and has ended."""
    script = [*tiny_tokenizer().encode("Yes.", add_special_tokens=False), 1]
    backend = make_backend(info=fake_info(max_model_len=2000))
    backend.script = lambda request, index: script
    with serving(backend, template=PRINTS_EVERYTHING) as server:
        yield server


def test_response_has_output_and_usage(server: ApiServer) -> None:
    """The instructions and the input go to the engine; a message item comes back."""
    response = server.client().responses.create(**BODY, instructions="Be short.")

    assert response.id.startswith("resp_")
    assert response.object == "response"
    assert response.output_text == said(8)
    assert [item.type for item in response.output] == ["message"]
    assert last_prompt(server) == (
        "<s><|system|>\nBe short.</s>\n<|user|>\nHow?</s>\n<|assistant|>\n"
    )
    assert response.usage is not None
    assert response.usage.input_tokens == len(server.backend.requests[-1].prompt_token_ids)
    assert response.usage.input_tokens_details.cached_tokens == 2
    assert response.usage.output_tokens == 8


def test_response_cut_short_is_incomplete(server: ApiServer) -> None:
    """The limit of tokens is named as the reason, in the response and in its last item."""
    response = server.client().responses.create(**BODY)

    assert response.status == "incomplete"
    assert response.incomplete_details is not None
    assert response.incomplete_details.reason == "max_output_tokens"
    assert response.output[-1].to_dict()["status"] == "incomplete"


def test_response_says_what_it_was_asked_for(brief: ApiServer) -> None:
    """Settings and metadata come back; nothing is stored."""
    response = brief.client().responses.create(
        **BODY, temperature=0.5, metadata={"team": "red"}, store=False
    )

    assert (response.temperature, response.top_p) == (0.5, 1.0)
    assert response.metadata == {"team": "red"}
    assert response.max_output_tokens == 8
    assert response.status == "completed"
    assert response.to_dict()["store"] is False


def test_stream_adds_up_to_the_response(brief: ApiServer) -> None:
    """The official client's accumulator makes a whole response of the events."""
    with brief.client().responses.stream(**BODY) as stream:
        text = "".join(
            event.delta for event in stream if event.type == "response.output_text.delta"
        )
        response = stream.get_final_response()

    assert text == response.output_text == "Yes."
    assert response.status == "completed"
    assert response.usage is not None
    assert response.usage.output_tokens > 0


def test_events_are_numbered_and_in_order(server: ApiServer) -> None:
    """Each event has its type as its name; items open and close around their text."""
    events = server.events(PATH, {**BODY, "max_output_tokens": 2, "stream": True})

    parsed = []
    for event in events:
        name, data = event.split("\n")
        parsed.append(json.loads(data.removeprefix("data: ")))
        assert name == f"event: {parsed[-1]['type']}"
    assert [event["sequence_number"] for event in parsed] == list(range(len(parsed)))
    kinds = [event["type"].removeprefix("response.") for event in parsed]
    assert kinds == [
        "created",
        "in_progress",
        "output_item.added",
        "content_part.added",
        *["output_text.delta"] * (len(kinds) - 8),
        "output_text.done",
        "content_part.done",
        "output_item.done",
        "incomplete",
    ]
    assert parsed[0]["response"]["status"] == "in_progress"
    assert parsed[-1]["response"]["output"] == [parsed[-2]["item"]]
    assert len({event["item_id"] for event in parsed if "item_id" in event}) == 1


async def test_async_client_streams(brief: ApiServer) -> None:
    """The asynchronous client, too."""
    async with brief.async_client() as client, client.responses.stream(**BODY) as stream:
        response = await stream.get_final_response()

    assert response.output_text == "Yes."


def test_items_become_the_turns_of_a_conversation(brief: ApiServer) -> None:
    """What the assistant thought, said and called in one go is one turn."""
    call = {"type": "function_call", "call_id": "c1", "name": "look", "arguments": '{"at": "it"}'}
    items: list[Any] = [
        {"role": "developer", "content": "Be short."},
        {"role": "user", "content": [{"type": "input_text", "text": "How?"}]},
        {
            "type": "reasoning",
            "id": "rs_1",
            "summary": [],
            "content": [{"type": "reasoning_text", "text": "Hm."}],
        },
        {
            "type": "message",
            "role": "assistant",
            "content": [{"type": "output_text", "text": "Let me see.", "annotations": []}],
        },
        call,
        {"type": "function_call_output", "call_id": "c1", "output": "Nothing."},
    ]
    brief.client().responses.create(**{**BODY, "input": items})

    turns = [json.loads(line) for line in last_prompt(brief).strip().split("\n")]
    assert [turn["role"] for turn in turns] == ["system", "user", "assistant", "tool"]
    assert turns[2]["content"] == "Let me see."
    assert turns[2]["reasoning_content"] == "Hm."
    assert turns[2]["tool_calls"] == [
        {"id": "c1", "type": "function", "function": {"name": "look", "arguments": {"at": "it"}}}
    ]
    assert turns[3] == {"role": "tool", "content": "Nothing.", "tool_call_id": "c1"}


def test_output_items_can_be_sent_back(brief: ApiServer) -> None:
    """The next request of a conversation repeats the items of the last answer as they were."""
    client = brief.client()
    first = client.responses.create(**BODY)
    said_so = [item.to_dict() for item in first.output]
    client.responses.create(
        **{**BODY, "input": [{"role": "user", "content": "How?"}, *said_so]}  # type: ignore[arg-type]
    )

    assert '"content": "Yes."' in last_prompt(brief)


@pytest.mark.parametrize(
    ("change", "param"),
    [
        ({"store": True}, "store"),
        ({"previous_response_id": "resp_1"}, "previous_response_id"),
        ({"background": True}, "background"),
        ({"conversation": "conv_1"}, "conversation"),
        ({"tools": [{"type": "web_search"}]}, "tools.0.type"),
        ({"input": [{"type": "item_reference", "id": "x"}]}, "input.0.type"),
        ({"input": [{"content": "Hi."}]}, "input.0.role"),
        ({"input": [{"role": "user"}]}, "input.0.content"),
        ({"input": [{"type": "function_call", "name": "f", "arguments": "{}"}]}, "input.0.call_id"),
        ({"input": [{"type": "function_call_output", "call_id": "c"}]}, "input.0.output"),
        (
            {"input": [{"role": "user", "content": [{"type": "input_image"}]}]},
            "input.0.content.0.type",
        ),
        ({"input": []}, "input"),
        ({"truncation": "auto"}, "truncation"),
        ({"text": {"format": {"type": "json_schema", "name": "a"}}}, "text.format.schema"),
        (
            {"text": {"format": {"type": "json_schema", "name": "a", "schema": {"not": {}}}}},
            "text.format.schema",
        ),
        ({"text": {"format": {"type": "json_object"}}}, "text.format"),
        ({"input": "x" * 500}, "input"),
        ({"tools": [{"type": "function", "name": "get weather"}]}, "tools.0.name"),
        (
            {"input": [{"type": "function_call", "name": "f", "call_id": "c", "arguments": "{"}]},
            "input",
        ),
    ],
)
def test_what_cannot_be_honoured_is_refused_by_name(
    server: ApiServer, change: dict[str, Any], param: str
) -> None:
    """A 400 that names the field; nothing reaches the engine."""
    num_requests = len(server.backend.requests)
    with pytest.raises(openai.BadRequestError) as caught:
        server.client().responses.create(**{**BODY, **change})

    assert caught.value.param == param
    assert param in caught.value.message
    assert len(server.backend.requests) == num_requests


def test_an_error_ends_a_stream_that_has_begun() -> None:
    """The last event is an error with the next number."""
    backend = make_backend(fault=EngineUnavailableError("gone"), fault_step=3)
    with serving(backend) as server:
        events = server.events(PATH, {**BODY, "stream": True})

    assert events[-1].startswith("event: error\n")
    last = json.loads(events[-1].split("data: ")[1])
    assert last["code"] == "engine_unavailable"
    assert last["sequence_number"] == len(events) - 1


def test_reasoning_is_an_item_of_its_own() -> None:
    """What a reasoning model thinks first comes as a reasoning item, whole and streamed."""
    script = tiny_tokenizer().encode("<think>Hm, so.</think>Yes.", add_special_tokens=False)
    backend = make_backend()
    backend.script = lambda request, index: [*script, 1]
    template = "{% for message in messages %}{{ message.content }}{% endfor %}{# <think></think> #}"
    with serving(backend, template=template) as server:
        body = {**BODY, "max_output_tokens": 60}
        whole = server.client().responses.create(**body)
        with server.client().responses.stream(**body) as stream:
            streamed = stream.get_final_response()

    for response in (whole, streamed):
        reasoning, message = response.output
        assert reasoning.type == "reasoning"
        assert reasoning.content is not None
        assert reasoning.content[0].text == "Hm, so."
        assert response.usage is not None
        num_reasoning_tokens = response.usage.output_tokens_details.reasoning_tokens
        assert 0 < num_reasoning_tokens < response.usage.output_tokens
        assert message.type == "message"
        assert response.output_text == "Yes."
