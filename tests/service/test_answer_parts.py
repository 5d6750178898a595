"""Reasoning, text and tool calls of one answer: whole, streamed, resumed anywhere."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest

from tests.helpers.api_server import ApiServer, encode, serving
from tests.helpers.fake_backend import FakeBackend

ROUTE = "/v1/chat/completions"
TEMPLATE = "{# <think></think> <tool_call></tool_call> #}{{ messages[0].content }}{{ tools }}"
ARGUMENTS = '{"city": "Größe", "days": [1, 2]}'
ANSWER = (
    f'<think>\nHm, 1 < 2. \n</think>\n\nI look.\n<tool_call>\n{{"name": "weather", "arguments": '
    f"{ARGUMENTS}}}\n</tool_call>"
)
BODY: dict[str, Any] = {
    "messages": [{"role": "user", "content": "Weather?"}],
    "tools": [{"type": "function", "function": {"name": "weather"}}],
    "return_token_ids": True,
    "max_tokens": 150,
}


@pytest.fixture(name="server", scope="module")
def _server() -> Iterator[ApiServer]:
    end = 1
    with serving(
        FakeBackend(lambda request, index: [*encode(ANSWER), end]), template=TEMPLATE
    ) as server:
        yield server


def chunks(server: ApiServer, **fields: Any) -> list[dict[str, Any]]:
    """The choice of every chunk of a stream."""
    response = server.post(ROUTE, {**BODY, "stream": True, **fields})
    assert response.status_code == 200, response.text
    lines = [line.removeprefix("data: ") for line in response.text.splitlines() if line]
    return [json.loads(line)["choices"][0] for line in lines if line != "[DONE]"]


def parts(found: list[dict[str, Any]]) -> tuple[str, str, list[dict[str, str]]]:
    """Reasoning, text and calls of chunks."""
    calls: list[dict[str, str]] = []
    for delta in (chunk["delta"] for chunk in found):
        for call in delta.get("tool_calls", ()):
            while len(calls) <= call["index"]:
                calls.append({"name": "", "arguments": ""})
            for name, text in call["function"].items():
                calls[call["index"]][name] += text
    reasoning, text = (
        "".join(chunk["delta"].get(name, "") for chunk in found)
        for name in ("reasoning_content", "content")
    )
    return reasoning, text, calls


WHOLE = ("Hm, 1 < 2.", "I look.", [{"name": "weather", "arguments": ARGUMENTS}])


def test_a_whole_answer_has_its_parts(server: ApiServer) -> None:
    """Tags belong to nobody, and neither does the white space beside them."""
    choice = server.post(ROUTE, BODY).json()["choices"][0]
    message = choice["message"]
    calls = [call["function"] for call in message["tool_calls"]]
    assert (message["reasoning_content"], message["content"], calls) == WHOLE
    assert choice["finish_reason"] == "tool_calls"


def test_a_stream_has_the_same_parts(server: ApiServer) -> None:
    """Reasoning, text, call, in their order."""
    found = chunks(server)
    assert parts(found) == WHOLE
    assert found[-1]["finish_reason"] == "tool_calls"


def test_a_resumed_stream_goes_on_exactly(server: ApiServer) -> None:
    """After any token, even within a tag: what was said and what follows make the answer."""
    token_ids = encode(ANSWER)
    for cut in range(1, len(token_ids)):
        said = chunks(server, max_tokens=cut)
        taken = [token for chunk in said for token in chunk["token_ids"]]
        # A client whose server has died has what was sent before the end, not what the end gave.
        said = [chunk for chunk in said if chunk["finish_reason"] is None]
        sent = [token for chunk in said for token in chunk["token_ids"]]
        assert taken[: len(sent)] == sent
        if not sent:
            continue
        length = sum(chunk["text_length"] for chunk in said)
        rest = chunks(server, resume_token_ids=[sent], resume_text_lengths=[length])
        both = parts([*said, *rest])
        # A call that had begun goes on under its number.
        assert both == WHOLE, (cut, both)
        assert rest[-1]["finish_reason"] == "tool_calls"


def test_without_tools_calls_are_text(server: ApiServer) -> None:
    """Nobody asked for them: the model's words come as they are."""
    choice = server.post(ROUTE, {**BODY, "tools": None}).json()["choices"][0]
    assert "<tool_call>" in choice["message"]["content"]
    assert "tool_calls" not in choice["message"]
    assert choice["finish_reason"] == "stop"


def test_an_answer_cut_off_in_its_reasoning_has_no_text(server: ApiServer) -> None:
    """What was thought is not said."""
    choice = server.post(ROUTE, {**BODY, "max_tokens": 12}).json()["choices"][0]
    assert choice["message"]["content"] == ""
    assert choice["message"]["reasoning_content"]
    assert choice["finish_reason"] == "length"
