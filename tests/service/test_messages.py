"""Anthropic's routes through the official client and on the wire."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import anthropic
import pytest

from tests.helpers.api_server import (
    MODEL,
    ApiServer,
    make_backend,
    make_state,
    said,
    serving,
    tiny_tokenizer,
    wait_until,
)
from tests.helpers.app_client import app_client
from tests.helpers.fake_backend import fake_info
from tgwui_k8s.api.app import create_app
from tgwui_k8s.api.docs import openapi_document
from tgwui_k8s.errors import EngineUnavailableError, OverloadedError

PATH = "/v1/messages"
USER: Any = {"role": "user", "content": "How?"}
BODY: dict[str, Any] = {"model": MODEL, "messages": [USER], "max_tokens": 8}
PRINTS_EVERYTHING = "{% for message in messages %}{{ message | tojson }}\n{% endfor %}"


def connect(server: ApiServer) -> anthropic.Anthropic:
    """The official client, which gives up at once."""
    return anthropic.Anthropic(base_url=server.url, api_key="none", max_retries=0, timeout=20)


def last_prompt(server: ApiServer) -> str:
    """What the engine was asked last, as text."""
    token_ids = server.backend.requests[-1].prompt_token_ids
    return tiny_tokenizer().decode(token_ids, skip_special_tokens=False)


@pytest.fixture(scope="module", name="server")
def _server() -> Iterator[ApiServer]:
    with serving(make_backend()) as server:
        yield server


@pytest.fixture(scope="module", name="printing")
def _printing() -> Iterator[ApiServer]:
    backend = make_backend(info=fake_info(max_model_len=2000))
    with serving(backend, template=PRINTS_EVERYTHING) as server:
        yield server


def test_message_has_content_reason_and_usage(server: ApiServer) -> None:
    """The rendered template goes to the engine; cached tokens are counted apart."""
    message = connect(server).messages.create(**BODY, system="Be short.")

    assert message.id.startswith("msg_")
    assert (message.type, message.role, message.model) == ("message", "assistant", MODEL)
    assert [block.to_dict() for block in message.content] == [
        {"type": "text", "text": said(8), "citations": None}
    ]
    assert (message.stop_reason, message.stop_sequence) == ("max_tokens", None)
    assert last_prompt(server) == (
        "<s><|system|>\nBe short.</s>\n<|user|>\nHow?</s>\n<|assistant|>\n"
    )
    num_prompt_tokens = len(server.backend.requests[-1].prompt_token_ids)
    assert message.usage.input_tokens == num_prompt_tokens - 2
    assert message.usage.cache_read_input_tokens == 2
    assert message.usage.output_tokens == 8


def test_stop_sequence_is_named(server: ApiServer) -> None:
    """The text ends before it, and the message says which it was."""
    message = connect(server).messages.create(**BODY, stop_sequences=["zzz", " sugar"])

    assert message.content[0].to_dict()["text"] == "Mix the flour with the"
    assert (message.stop_reason, message.stop_sequence) == ("stop_sequence", " sugar")


def test_end_of_turn_is_a_reason(server: ApiServer) -> None:
    """An end-of-sequence token ends the turn."""
    script = [*tiny_tokenizer().encode("Yes.", add_special_tokens=False), 1]
    with serving(make_backend(), template=PRINTS_EVERYTHING) as other:
        other.backend.script = lambda request, index: script
        message = connect(other).messages.create(**BODY)

    assert message.stop_reason == "end_turn"
    assert message.content[0].to_dict()["text"] == "Yes."


def test_stream_adds_up_to_the_message(server: ApiServer) -> None:
    """The official client's accumulator makes the same message of the events."""
    whole = connect(server).messages.create(**BODY, stop_sequences=["sugar"])
    with connect(server).messages.stream(**BODY, stop_sequences=["sugar"]) as stream:
        text = "".join(stream.text_stream)
        message = stream.get_final_message()

    assert text == "Mix the flour with the "
    left_out = {"id", "stop_details"}
    streamed = {key: value for key, value in message.to_dict().items() if key not in left_out}
    streamed["content"] = [{"type": "text", "text": text, "citations": None}]
    assert streamed == {k: v for k, v in whole.to_dict().items() if k not in left_out}


def test_events_are_named_and_in_order(server: ApiServer) -> None:
    """Each event has its type as its name; no [DONE] follows."""
    events = server.events(PATH, {**BODY, "max_tokens": 2, "stream": True})

    parsed = []
    for event in events:
        name, data = event.split("\n")
        parsed.append(json.loads(data.removeprefix("data: ")))
        assert name == f"event: {parsed[-1]['type']}"
    kinds = [event["type"] for event in parsed]
    assert kinds[:3] == ["message_start", "ping", "content_block_start"]
    assert set(kinds[3:-3]) == {"content_block_delta"}
    assert kinds[-3:] == ["content_block_stop", "message_delta", "message_stop"]
    assert parsed[0]["message"]["content"] == []
    assert parsed[-2]["delta"] == {"stop_reason": "max_tokens", "stop_sequence": None}
    assert parsed[-2]["usage"]["output_tokens"] == 2


async def test_async_client_streams(server: ApiServer) -> None:
    """The asynchronous client, too."""
    client = anthropic.AsyncAnthropic(base_url=server.url, api_key="none", max_retries=0)
    async with client, client.messages.stream(**BODY) as stream:
        message = await stream.get_final_message()

    assert message.usage.output_tokens == 8


def test_last_assistant_message_is_gone_on_with(server: ApiServer) -> None:
    """What the client puts into the assistant's mouth stands at the end of the prompt."""
    messages = [USER, {"role": "assistant", "content": "Well, mix"}]
    connect(server).messages.create(**{**BODY, "messages": messages})

    assert last_prompt(server).endswith("<|assistant|>\nWell, mix")


def test_tool_turns_reach_the_template(printing: ApiServer) -> None:
    """Calls, results and reasoning of earlier turns, in the words of chat templates."""
    messages = [
        USER,
        {
            "role": "assistant",
            "content": [
                {"type": "thinking", "thinking": "Hm.", "signature": ""},
                {"type": "text", "text": "Let me see."},
                {"type": "tool_use", "id": "t1", "name": "look", "input": {"at": "it"}},
            ],
        },
        {
            "role": "user",
            "content": [
                {"type": "tool_result", "tool_use_id": "t1", "content": "Nothing."},
                {"type": "text", "text": "So?"},
            ],
        },
    ]
    connect(printing).messages.create(**{**BODY, "messages": messages})

    prompt = [json.loads(line) for line in last_prompt(printing).strip().split("\n")]
    assert prompt == [
        {"role": "user", "content": "How?"},
        {
            "role": "assistant",
            "content": "Let me see.",
            "reasoning_content": "Hm.",
            "thinking": "Hm.",
            "tool_calls": [
                {
                    "id": "t1",
                    "type": "function",
                    "function": {"name": "look", "arguments": {"at": "it"}},
                }
            ],
        },
        {"role": "tool", "content": "Nothing.", "tool_call_id": "t1"},
        {"role": "user", "content": "So?"},
    ]


def test_tokens_are_counted_as_they_are_used(server: ApiServer) -> None:
    """The count is the prompt's length in the engine."""
    connect(server).messages.create(**BODY, system="Be short.")
    count = connect(server).messages.count_tokens(model=MODEL, messages=[USER], system="Be short.")

    assert count.input_tokens == len(server.backend.requests[-1].prompt_token_ids)


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"container": "c"}, "'container'"),
        ({"mcp_servers": [{}]}, "'mcp_servers'"),
        ({"colour": "red"}, "'colour'"),
        ({"max_tokens": None}, "'max_tokens'"),
        ({"messages": []}, "'messages'"),
        ({"messages": [{"role": "user", "content": [{"type": "image"}]}]}, "'image'"),
        (
            {"messages": [{"role": "assistant", "content": [{"type": "tool_result",
             "tool_use_id": "x"}]}]},
            "'tool_result'",
        ),
        (
            {"messages": [{"role": "assistant", "content": [{"type": "tool_use",
             "id": "x", "name": "f", "input": {}}]}]},
            "'tool_use'",
        ),
        ({"tools": [{"type": "bash_20250124", "name": "bash"}]}, "'bash_20250124'"),
        ({"tool_choice": {"type": "tool"}}, "'tool_choice.name'"),
        ({"max_tokens": 1000}, "maximum context length"),
        ({"messages": [{**USER, "content": "x" * 500}]}, "in your messages"),
        ({"tools": [{"name": "get weather", "input_schema": {}}]}, "'tools.0.name'"),
        ({"thinking": {"type": "enabled", "budget_tokens": 5}}, "'thinking.budget_tokens'"),
        (
            {"output_config": {"format": {"type": "json_schema", "schema": {"not": {}}}}},
            "'output_config.format.schema'",
        ),
    ],
)  # fmt: skip
def test_what_cannot_be_honoured_is_refused_by_name(
    server: ApiServer, change: dict[str, Any], named: str
) -> None:
    """A 400 in Anthropic's shape that names the field; nothing reaches the engine."""
    num_requests = len(server.backend.requests)
    response = server.post(PATH, {**BODY, **change})

    assert response.status_code == 400, response.text
    body = response.json()
    assert body["type"] == "error"
    assert body["error"]["type"] == "invalid_request_error"
    assert named in body["error"]["message"]
    assert len(server.backend.requests) == num_requests


@pytest.mark.parametrize(
    ("refusal", "expected"),
    [
        (OverloadedError("full"), anthropic.OverloadedError),
        (EngineUnavailableError("gone"), anthropic.ServiceUnavailableError),
    ],
)
def test_a_busy_server_says_so_in_anthropics_words(
    refusal: Exception, expected: type[anthropic.APIStatusError]
) -> None:
    """Its client raises the error it has for that, and is told when to come back."""
    with (
        serving(make_backend(refusal=refusal)) as server,
        pytest.raises(expected) as caught,
    ):
        connect(server).messages.create(**BODY)

    assert caught.value.response.json()["error"]["type"] == "overloaded_error"
    assert caught.value.response.headers["retry-after"] == "1"


def test_an_error_ends_a_stream_that_has_begun() -> None:
    """The client learns of it from an error event."""
    backend = make_backend(fault=EngineUnavailableError("gone"), fault_step=3)
    with serving(backend) as server:
        with (
            connect(server).messages.stream(**BODY) as stream,
            pytest.raises(anthropic.APIStatusError, match="gone"),
        ):
            stream.until_done()
        last = server.events(PATH, {**BODY, "stream": True})[-1]

    assert last.startswith("event: error\n")


def test_other_models_are_not_found(server: ApiServer) -> None:
    """A 404 in Anthropic's shape."""
    with pytest.raises(anthropic.NotFoundError, match="does not exist"):
        connect(server).messages.create(**{**BODY, "model": "another"})


async def test_its_key_header_is_accepted() -> None:
    """The client sends `x-api-key`; a wrong one is an authentication error."""
    state = make_state(make_backend(), api_key=("right",))
    body = {"model": MODEL, "messages": [USER]}
    answers = []
    for key in ("wrong", "right"):
        async with app_client(state, x_api_key=key) as client:
            answers.append(await client.post(f"{PATH}/count_tokens", json=body))

    assert [answer.status_code for answer in answers] == [401, 200]
    assert answers[0].json()["error"]["type"] == "authentication_error"


def test_a_client_that_goes_away_aborts(server: ApiServer) -> None:
    """Closing the stream ends the request in the engine."""
    with serving(make_backend(hold_step=3)) as held:
        with connect(held).messages.stream(**BODY) as stream:
            next(iter(stream))
        wait_until(lambda: held.backend.aborted)
        held.backend.released.set()


def test_the_document_describes_its_errors(server: ApiServer) -> None:
    """The OpenAPI document knows Anthropic's shape and its own status for a full queue."""
    document = openapi_document(create_app(server.state))
    responses = document["paths"][PATH]["post"]["responses"]

    assert responses["529"]["content"]["application/json"]["schema"]["$ref"].endswith(
        "AnthropicError"
    )


THINKS = "{% for message in messages %}{{ message.content }}{% endfor %}{# <think></think> #}"


def test_thinking_is_a_block_of_its_own() -> None:
    """What a reasoning model thinks first comes as a thinking block, whole and streamed."""
    script = tiny_tokenizer().encode("<think>Hm, so.</think>Yes.", add_special_tokens=False)
    backend = make_backend()
    backend.script = lambda request, index: [*script, 1]
    with serving(backend, template=THINKS) as server:
        whole = connect(server).messages.create(**{**BODY, "max_tokens": 60})
        with connect(server).messages.stream(**{**BODY, "max_tokens": 60}) as stream:
            kinds = [event.type for event in stream]
            streamed = stream.get_final_message()

    for message in (whole, streamed):
        thinking, text = message.content
        assert thinking.type == "thinking"
        assert thinking.thinking == "Hm, so."
        assert text.type == "text"
        assert text.text == "Yes."
    assert kinds.count("content_block_start") == kinds.count("content_block_stop") == 2
