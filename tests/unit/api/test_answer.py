"""What may take long is done beside the event loop, which answers the probes."""

from __future__ import annotations

import json
from typing import Any

import pytest
from anyio.to_thread import run_sync

from tests.helpers.api_server import MODEL, make_backend, make_state
from tests.helpers.app_client import app_client
from tests.helpers.fake_backend import fake_info
from tgwui_k8s.api import answer
from tgwui_k8s.contract import Capabilities

CHAT: dict[str, Any] = {"messages": [{"role": "user", "content": "x"}]}
MESSAGE: dict[str, Any] = {"model": MODEL, "max_tokens": 1, **CHAT}
TEMPLATE = "{{ tools }}<tool_call></tool_call><think></think>{{ messages[0].content }}"
SCHEMA = {"type": "object"}
FUNCTION = {"name": "f", "parameters": SCHEMA}


def escaped(body: dict[str, Any]) -> str:
    """The body as JSON that has no field's name in it as one knows it."""
    members = (
        f'"\\u{ord(name[0]):04x}{name[1:]}": {json.dumps(value)}' for name, value in body.items()
    )
    return "{" + ", ".join(members) + "}"


@pytest.fixture(name="in_threads")
def _in_threads(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """What was done in a thread."""
    done = []

    async def noted(work: Any, *args: Any) -> Any:
        done.append(work)
        return await run_sync(work, *args)

    monkeypatch.setattr(answer, "run_sync", noted)
    return done


async def post(path: str, body: str) -> None:
    info = fake_info(capabilities=Capabilities(grammar=True))
    state = make_state(make_backend(info=info), template=TEMPLATE)
    async with app_client(state, content_type="application/json") as client:
        await client.post(path, content=body)


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/v1/completions", {"prompt": "x", "guided_regex": "a"}),
        ("/v1/completions", {"prompt": "x", "guided_choice": ["a"]}),
        ("/v1/completions", {"prompt": "x", "guided_json": SCHEMA}),
        ("/v1/completions", {"prompt": "x", "grammar_string": 'root ::= "a"'}),
        ("/generate", {"prompt": "x", "guided_grammar": 'root ::= "a"'}),
        ("/invocations", {"prompt": "x", "guided_json": SCHEMA}),
        ("/v1/chat/completions", {**CHAT, "tools": [{"type": "function", "function": FUNCTION}]}),
        ("/v1/chat/completions", {**CHAT, "response_format": {"type": "json_object"}}),
        ("/v1/chat/completions", {**CHAT, "thinking_token_budget": 3}),
        ("/v1/messages", {**MESSAGE, "tools": [{"name": "f", "input_schema": SCHEMA}]}),
        ("/v1/messages", {**MESSAGE, "thinking": {"type": "enabled", "budget_tokens": 9}}),
        (
            "/v1/messages",
            {**MESSAGE, "output_config": {"format": {"type": "json_schema", "schema": SCHEMA}}},
        ),
        ("/v1/responses", {"input": "x", "tools": [{"type": "function", **FUNCTION}]}),
        ("/v1/responses", {"input": "x", "text": {"format": {"type": "json_object"}}}),
    ],
)
async def test_grammars_are_compiled_in_a_thread_however_they_are_written(
    path: str, body: dict[str, Any], in_threads: list[Any]
) -> None:
    """JSON knows more than one way to write a name."""
    await post(path, escaped(body))
    assert len(in_threads) == 1


async def test_what_is_small_is_done_at_once(in_threads: list[Any]) -> None:
    """A thread costs more than it; its text may speak of grammars."""
    await post("/v1/completions", json.dumps({"prompt": 'a guided_json grammar for "tools"'}))
    assert in_threads == []
