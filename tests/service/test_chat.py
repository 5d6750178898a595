"""Chat completions through the official client and on the wire."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import openai
import pytest

from tests.helpers.api_server import (
    MODEL,
    SAID,
    ApiServer,
    encode,
    make_backend,
    said,
    serving,
    tiny_tokenizer,
    wait_until,
)
from tests.helpers.fake_backend import FIRST_ALTERNATIVE, fake_info, fake_logprobs

PATH = "/v1/chat/completions"
MESSAGES: list[Any] = [{"role": "user", "content": "How?"}]
BODY: dict[str, Any] = {"model": MODEL, "messages": MESSAGES, "max_tokens": 8}
PRINTS_EVERYTHING = (
    "{% for message in messages %}{{ message | tojson }}\n{% endfor %}"
    "{{ add_generation_prompt }} {{ enable_thinking }} {{ colour }}"
)
"""A template that shows what it was given."""


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


def test_chat_has_a_message_and_exact_usage(server: ApiServer) -> None:
    """The rendered template goes to the engine; its answer comes back as a message."""
    completion = server.client().chat.completions.create(**BODY)

    (choice,) = completion.choices
    assert choice.message.role == "assistant"
    assert choice.message.content == said(8)
    assert choice.finish_reason == "length"
    assert completion.object == "chat.completion"
    assert completion.id.startswith("chatcmpl-")
    assert last_prompt(server) == "<s><|user|>\nHow?</s>\n<|assistant|>\n"
    assert completion.usage is not None
    assert completion.usage.prompt_tokens == len(server.backend.requests[-1].prompt_token_ids)
    assert completion.usage.completion_tokens == 8


def test_chat_goes_on_to_the_end_of_the_context_by_default(server: ApiServer) -> None:
    """Without max_tokens the answer may be as long as the context allows."""
    completion = server.client().chat.completions.create(model=MODEL, messages=MESSAGES)

    assert completion.usage is not None
    assert completion.usage.total_tokens == 200
    assert completion.choices[0].finish_reason == "length"


def test_stream_says_the_role_once_per_choice(server: ApiServer) -> None:
    """The deltas add up to the message; one id, one reason at the end of each choice."""
    chunks = list(server.client().chat.completions.create(**BODY, n=2, stream=True))

    for index in range(2):
        deltas = [chunk.choices[0] for chunk in chunks if chunk.choices[0].index == index]
        assert [delta.delta.role for delta in deltas] == ["assistant"] + [None] * (len(deltas) - 1)
        assert "".join(delta.delta.content or "" for delta in deltas) == said(8)
        reasons = [delta.finish_reason for delta in deltas]
        assert reasons == [None] * (len(deltas) - 1) + ["length"]
    assert len({chunk.id for chunk in chunks}) == 1


async def test_async_clients_stream_side_by_side(server: ApiServer) -> None:
    """The client's own accumulator makes a message of the stream."""
    async with server.async_client() as client:
        stream = await client.chat.completions.create(
            **BODY, stream=True, stream_options={"include_usage": True}
        )
        chunks = [chunk async for chunk in stream]

    assert chunks[-1].choices == []
    assert chunks[-1].usage is not None
    assert chunks[-1].usage.completion_tokens == 8


def test_logprobs_are_objects_per_token(server: ApiServer) -> None:
    """Token, bytes, log probability, and the most likely tokens of that place."""
    completion = server.client().chat.completions.create(**BODY, logprobs=True, top_logprobs=2)

    logprobs = completion.choices[0].logprobs
    assert logprobs is not None
    assert logprobs.content is not None
    assert len(logprobs.content) == 8
    first = logprobs.content[0]
    expected = fake_logprobs(encode(SAID)[0], 2, 1, 0)
    assert first.logprob == expected.logprob
    assert bytes(first.bytes or ()) == first.token.encode()
    tokenizer = tiny_tokenizer()
    assert [(top.token, top.logprob) for top in first.top_logprobs] == [
        (tokenizer.token_text(FIRST_ALTERNATIVE), -0.5),
        (tokenizer.token_text(FIRST_ALTERNATIVE + 1), -1.0),
    ]


@pytest.mark.parametrize("top_logprobs", [None, 0])
def test_logprobs_without_alternatives(server: ApiServer, top_logprobs: int | None) -> None:
    """Every token of a stream has its entry, split characters included."""
    body = {**BODY, "max_tokens": 24, "logprobs": True, "top_logprobs": top_logprobs}
    events = [json.loads(event[6:]) for event in server.events(PATH, {**body, "stream": True})[:-1]]

    entries = [entry for event in events for entry in event["choices"][0]["logprobs"]["content"]]
    assert len(entries) == 24
    assert b"".join(bytes(entry["bytes"]) for entry in entries) == said(24).encode()
    assert all(entry["top_logprobs"] == [] for entry in entries)


def test_stop_string_that_two_tokens_share(server: ApiServer) -> None:
    """No part of a stop string leaks, and what only looked like one is delivered."""
    chunks = server.client().chat.completions.create(
        model=MODEL, messages=MESSAGES, stop=["bake!", "größ"], stream=True
    )

    text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks)
    assert text == SAID[: SAID.index("größ")]


def test_closed_stream_aborts_the_request() -> None:
    """A client that goes away frees the engine."""
    with serving(make_backend(hold_step=2)) as server:
        stream = server.client().chat.completions.create(**BODY, stream=True)
        next(iter(stream))
        stream.close()

        wait_until(lambda: server.backend.aborted)


def test_every_role_and_kind_of_content_reaches_the_template(printing: ApiServer) -> None:
    """Parts are joined, calls are objects, and a developer is a system where none is known."""
    call = {"id": "c1", "type": "function", "function": {"name": "f", "arguments": '{"a": 1}'}}
    messages = [
        {"role": "system", "content": "Be kind."},
        {
            "role": "developer",
            "content": [{"type": "text", "text": "Be"}, {"type": "text", "text": "brief."}],
        },
        {"role": "user", "content": "Hi.", "name": "Ann"},
        {"role": "assistant", "content": None, "tool_calls": [call]},
        {"role": "tool", "content": "42", "tool_call_id": "c1"},
        {"role": "assistant", "content": "So.", "reasoning_content": "Hm."},
    ]

    printing.client().chat.completions.create(**{**BODY, "messages": messages})

    shown = [json.loads(line) for line in last_prompt(printing).splitlines()[:-1]]
    assert shown[0] == {"role": "system", "content": "Be kind."}
    assert shown[1] == {"role": "system", "content": "Be\nbrief."}
    assert shown[2] == {"role": "user", "content": "Hi.", "name": "Ann"}
    function = {"name": "f", "arguments": {"a": 1}}
    assert shown[3] == {
        "role": "assistant",
        "tool_calls": [{"id": "c1", "type": "function", "function": function}],
    }
    assert shown[4] == {"role": "tool", "content": "42", "tool_call_id": "c1"}
    assert shown[5]["reasoning_content"] == "Hm."


def test_developer_stays_one_where_the_template_knows_the_role() -> None:
    """Templates that tell developers from systems get to do so."""
    template = "{% for m in messages %}{% if m.role == 'developer' %}dev{% endif %}{% endfor %}"
    with serving(make_backend(), template=template) as server:
        messages = [{"role": "developer", "content": "x"}]
        server.post(PATH, {"messages": messages, "max_tokens": 1})

        assert last_prompt(server) == "dev"


def test_template_variables(printing: ApiServer) -> None:
    """chat_template_kwargs and enable_thinking are variables of the template."""
    printing.post(
        PATH,
        {**BODY, "chat_template_kwargs": {"colour": "red"}, "enable_thinking": False},
    )
    assert last_prompt(printing).endswith("True False red")

    printing.post(PATH, {**BODY, "add_generation_prompt": False})
    assert last_prompt(printing).splitlines()[-1].startswith("False")


@pytest.mark.parametrize("name", ["continue_final_message", "continue_"])
def test_last_message_is_continued(server: ApiServer, name: str) -> None:
    """The prompt ends where the assistant's message ends, and only what is new comes back."""
    messages = [*MESSAGES, {"role": "assistant", "content": "First,"}]

    answer = server.post(PATH, {**BODY, "messages": messages, name: True}).json()

    assert last_prompt(server).endswith("<|assistant|>\nFirst,")
    assert answer["choices"][0]["message"]["content"] == said(8)


@pytest.mark.parametrize("add_bos_token", [None, True, False])
def test_bos_token_stands_where_it_is_wanted(server: ApiServer, add_bos_token: bool | None) -> None:
    """The template's own stands unless the request says otherwise; there are never two."""
    server.post(PATH, {**BODY, "add_bos_token": add_bos_token})

    expected = 0 if add_bos_token is False else 1
    assert server.backend.requests[-1].prompt_token_ids.count(0) == expected


def test_resumed_chat_goes_on_without_saying_the_role_again(server: ApiServer) -> None:
    """A gateway can splice both streams together."""
    body = {**BODY, "stream": True, "return_token_ids": True}
    events = [json.loads(event[6:]) for event in server.events(PATH, body)[:-1]]
    before = [event["choices"][0] for event in events[:3]]
    token_ids = [token_id for choice in before for token_id in choice["token_ids"]]
    delivered = "".join(choice["delta"]["content"] for choice in before)

    resumed = {
        **body,
        "resume_token_ids": [token_ids],
        "resume_text_lengths": [len(delivered)],
    }
    after = [json.loads(event[6:])["choices"][0] for event in server.events(PATH, resumed)[:-1]]

    assert delivered + "".join(choice["delta"].get("content", "") for choice in after) == said(8)
    assert all("role" not in choice["delta"] for choice in after)
    assert after[0]["text_offset"] == len(delivered)


def test_model_without_a_chat_template_says_so() -> None:
    """The remedy is in the message."""
    with serving(make_backend(), template=None) as server:
        response = server.post(PATH, BODY)

    assert response.status_code == 400
    assert response.json()["error"]["code"] == "unsupported_parameter"
    assert "--chat-template" in response.json()["error"]["message"]


def test_template_that_refuses_the_messages_is_a_400(server: ApiServer) -> None:
    """The tiny template knows no tools."""
    messages = [{"role": "tool", "content": "42", "tool_call_id": "c1"}]

    with pytest.raises(openai.BadRequestError) as caught:
        server.client().chat.completions.create(**{**BODY, "messages": messages})

    assert caught.value.param == "messages"


@pytest.mark.parametrize(
    ("change", "param", "code"),
    [
        ({"messages": []}, "messages", "empty_array"),
        ({"messages": [{"role": "user"}]}, "messages.0.content", "missing_required_parameter"),
        (
            {"messages": [{"role": "tool", "content": "x"}]},
            "messages.0.tool_call_id",
            "missing_required_parameter",
        ),
        (
            {"messages": [{"role": "user", "content": [{"type": "text"}]}]},
            "messages.0.content.0.text",
            "missing_required_parameter",
        ),
        (
            {"messages": [{"role": "user", "content": [{"type": "image_url"}]}]},
            "messages.0.content.0.type",
            "unsupported_parameter",
        ),
        (
            {
                "messages": [
                    {
                        "role": "assistant",
                        "tool_calls": [
                            {
                                "id": "c",
                                "type": "function",
                                "function": {"name": "f", "arguments": "{"},
                            }
                        ],
                    }
                ]
            },
            "messages.0.tool_calls.0.function.arguments",
            "invalid_value",
        ),
        ({"max_tokens": 0}, "max_tokens", "integer_below_min_value"),
        ({"max_completion_tokens": 9}, "max_tokens", "invalid_value"),
        ({"top_logprobs": 2}, "top_logprobs", "invalid_value"),
        ({"logprobs": True, "top_logprobs": 21}, "top_logprobs", "integer_above_max_value"),
        ({"continue_": True}, "continue_", "invalid_value"),
        (
            {"continue_final_message": True, "add_generation_prompt": True},
            "continue_final_message",
            None,
        ),
        ({"chat_template_kwargs": {"messages": []}}, "chat_template_kwargs.messages", None),
        ({"truncate": True}, "truncate", "unknown_parameter"),
    ],
)
def test_what_cannot_be_done_is_refused_by_name(
    server: ApiServer, change: dict[str, object], param: str, code: str | None
) -> None:
    """Each is a 400 that names the field, and the engine never hears of it."""
    num_requests = len(server.backend.requests)

    response = server.post(PATH, {**BODY, **change})

    assert response.status_code == 400, response.text
    error = response.json()["error"]
    assert error["param"] == param
    assert error["code"] == code
    assert len(server.backend.requests) == num_requests
