"""Streams that outlive their endpoints: whatever breaks, wherever, the client gets the whole.

The engine behind is the real API over a backend that says the same text each time; endpoints in
front of it let so many bytes pass and then break. The oracle is the same request sent to the engine
directly.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import httpx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.helpers.api_server import MODEL, SAID, ApiServer, encode, serving
from tests.helpers.fake_backend import FakeBackend
from tests.helpers.gateway import RunningGateway, chunks_of, events_of, running_gateway
from tests.helpers.loop_thread import LoopThread
from tests.helpers.scripted_endpoint import Deed, Plan, ScriptedEndpoint
from tgwui_k8s.gateway.continuation.journal import Journal

COMPLETIONS, CHAT = "/v1/completions", "/v1/chat/completions"
OTHERS = "größer! Mix 你好, then stop"
"""What later choices say: each begins somewhere else in it."""


@dataclass
class Stage:
    """An engine, endpoints that break, and the gateway before them."""

    engine: ApiServer
    endpoints: list[ScriptedEndpoint]
    gateway: RunningGateway
    http: httpx.Client

    def run(self, path: str, body: dict[str, Any], plans: list[Plan]) -> httpx.Response:
        """One request, whose attempts meet `plans` in order, wherever they go."""
        self.gateway.forgive()
        shared = _Shared(plans)
        for endpoint in self.endpoints:
            endpoint.plans = shared  # type: ignore[assignment]
            endpoint.requests.clear()
        return self.http.post(self.gateway.url + path, json=body)

    @property
    def num_attempts(self) -> int:
        """Of the last request."""
        return sum(len(endpoint.requests) for endpoint in self.endpoints)


class _Shared:
    """Plans that all endpoints take from."""

    def __init__(self, plans: list[Plan]) -> None:
        self._plans = list(plans)

    def __bool__(self) -> bool:
        return bool(self._plans)

    def popleft(self) -> Plan:
        """The next one."""
        return self._plans.pop(0)


@pytest.fixture(scope="module")
def stage() -> Iterator[Stage]:
    """Four endpoints: three can die and one is left."""
    own, others = encode(SAID) * 30, encode(OTHERS) * 60
    backend = FakeBackend(lambda request, index: own if index == 0 else others[3 * index :])
    with serving(backend) as engine, LoopThread() as loop, httpx.Client(timeout=30) as http:
        endpoints = [loop.enter(ScriptedEndpoint(engine.url).serve()) for _ in range(4)]
        gateway = loop.enter(
            running_gateway(*(endpoint.url for endpoint in endpoints), between_chunks_timeout=0.5)
        )
        yield Stage(engine, endpoints, gateway, http)


def seen(text: str) -> dict[str, Any]:
    """What a client has of a complete stream, however it was cut into chunks."""
    choices: dict[int, dict[str, Any]] = {}
    usage = None
    for chunk in chunks_of(text):
        usage = chunk.get("usage") or usage
        for choice in chunk["choices"]:
            index = choice["index"]
            one = choices.setdefault(
                index,
                {"text": "", "reasoning": "", "roles": [], "ids": [], "logprobs": [], "prompt": []},
            )
            assert "finish" not in one, "something came after the end"
            delta = choice.get("delta", {})
            one["text"] += choice.get("text") or delta.get("content") or ""
            one["reasoning"] += delta.get("reasoning_content") or ""
            one["roles"] += [delta["role"]] if "role" in delta else []
            one["ids"] += choice.get("token_ids", [])
            one["prompt"] += [choice["prompt_token_ids"]] if "prompt_token_ids" in choice else []
            one["logprobs"] += _logprobs(choice["logprobs"])
            if choice["finish_reason"]:
                one["finish"] = choice["finish_reason"]
    if usage is not None:
        usage.pop("prompt_tokens_details")  # What was cached where is not promised.
    return {"choices": choices, "usage": usage}


def _logprobs(found: Any) -> list[Any]:
    if not found:
        return []
    if "content" in found:
        return list(found["content"])
    return list(
        zip(
            found["tokens"],
            found["token_logprobs"],
            [json.dumps(top) for top in found["top_logprobs"]],
            found["text_offset"],
            strict=True,
        )
    )


@st.composite
def requests(draw: st.DrawFn) -> tuple[str, dict[str, Any]]:
    """A path and a body."""
    body: dict[str, Any] = {
        "model": MODEL,
        "stream": True,
        "n": draw(st.integers(1, 3)),
        "max_tokens": draw(st.integers(1, 40)),
        "temperature": 1,
    }
    if draw(st.booleans()):
        body["stop"] = draw(
            st.lists(
                st.sampled_from(["then", "sugar, ", "größer 你", "好", "!Mix", "nowhere"]),
                min_size=1,
                max_size=3,
                unique=True,
            )
        )
    if draw(st.booleans()):
        body["stream_options"] = {"include_usage": True}
    if draw(st.booleans()):
        body["return_token_ids"] = True
    if draw(st.booleans()):
        body["seed"] = draw(st.one_of(st.none(), st.integers(-1, 100)))
    if draw(st.booleans()):
        return COMPLETIONS, {
            **body,
            "prompt": draw(st.sampled_from(["A recipe:", ["One", "Two"], [3, 4, 5]])),
            "echo": draw(st.booleans()),
            "logprobs": draw(st.sampled_from([None, 0, 2])),
        }
    logprobs = draw(st.booleans())
    return CHAT, {
        **body,
        "messages": [{"role": "user", "content": "Bake!"}],
        "logprobs": logprobs,
        **({"top_logprobs": 2} if logprobs else {}),
    }


DEEDS: tuple[Deed, ...] = ("reset", "close")


@settings(max_examples=120, deadline=None)
@given(request=requests(), data=st.data())
def test_a_stream_that_is_cut_anywhere_equals_the_uninterrupted_one(
    stage: Stage, request: tuple[str, dict[str, Any]], data: st.DataObject
) -> None:
    """Text, token ids, log probabilities, roles, usage and finish reasons: after one to three
    deaths at any byte of the answer, the client has what it would have had without them."""
    path, body = request
    direct = stage.engine.post(path, body)
    assert direct.status_code == 200, direct.text
    length = len(direct.content)
    cuts = data.draw(
        st.lists(
            st.tuples(st.integers(0, 2 * length), st.sampled_from(DEEDS)), min_size=1, max_size=3
        )
    )

    response = stage.run(path, body, [Plan(cut, deed) for cut, deed in cuts])

    assert response.status_code == 200
    assert seen(response.text) == seen(direct.text)
    heads = [
        {name: chunk[name] for name in ("id", "created", "model", "system_fingerprint")}
        for chunk in chunks_of(response.text)
    ]
    assert all(head == heads[0] for head in heads)


def test_every_event_boundary_is_a_place_to_go_on_from(stage: Stage) -> None:
    """Cut right after each event in turn, and in the middle of each."""
    body = {
        "model": MODEL,
        "prompt": "A recipe:",
        "stream": True,
        "n": 2,
        "max_tokens": 12,
        "stop": ["größer 你"],
        "stream_options": {"include_usage": True},
    }
    asked = {**body, "return_token_ids": True, "seed": 1}
    raw = stage.engine.post(COMPLETIONS, asked)
    whole = seen(stage.engine.post(COMPLETIONS, body).text)
    positions = [
        place for place in range(len(raw.content)) if raw.content[place:].startswith(b"data:")
    ]
    for position in positions:
        for cut in (position, position + 40):
            response = stage.run(COMPLETIONS, body, [Plan(cut + 150, "reset")])
            assert seen(response.text) == whole


def test_a_stalled_stream_goes_on_elsewhere(stage: Stage) -> None:
    """An endpoint that hangs in mid-stream is left when the time between chunks is over."""
    body = {"model": MODEL, "prompt": "x", "stream": True, "max_tokens": 12}

    response = stage.run(COMPLETIONS, body, [Plan(900, "stall")])

    assert seen(response.text) == seen(stage.engine.post(COMPLETIONS, body).text)
    assert stage.num_attempts == 2


def test_what_the_client_did_not_ask_for_is_taken_out(stage: Stage) -> None:
    """Token ids and offsets are between gateway and engine."""
    body = {"model": MODEL, "prompt": "x", "stream": True, "max_tokens": 6}

    text = stage.run(COMPLETIONS, body, [Plan(900, "reset")]).text

    assert "token_ids" not in text
    assert "text_offset" not in text
    assert "text_length" not in text


def test_a_stream_that_dies_too_often_ends_with_an_error_event(stage: Stage) -> None:
    """A request that kills engines gets four of them, and the client no `[DONE]`."""
    body = {"model": MODEL, "prompt": "x", "stream": True, "max_tokens": 30}

    response = stage.run(COMPLETIONS, body, [Plan(1200, "reset") for _ in range(9)])

    events = events_of(response.text)
    error = json.loads(events[-1])["error"]
    assert error["code"] == "stream_interrupted"
    assert "[DONE]" not in events
    assert stage.num_attempts == 4
    metrics = stage.http.get(stage.gateway.url + "/metrics").text
    assert f'tgwui_gateway_interrupted_streams_total{{model_name="{MODEL}"}} 1.0' in metrics


def test_without_resume_lengths_the_text_is_not_taken_for_right(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The checks have teeth: told the wrong lengths, the stream ends with an error, and what came
    is still a prefix of the right text."""
    body = {"model": MODEL, "prompt": "x", "stream": True, "max_tokens": 30, "stop": ["你好 "]}
    whole = seen(stage.engine.post(COMPLETIONS, body).text)["choices"][0]["text"]
    resume = Journal.resume_members
    monkeypatch.setattr(
        Journal,
        "resume_members",
        lambda journal: {**resume(journal), "resume_text_lengths": [0]},
    )

    events = events_of(stage.run(COMPLETIONS, body, [Plan(1500, "reset")]).text)

    assert json.loads(events[-1])["error"]["code"] == "stream_interrupted"
    text = "".join(json.loads(event)["choices"][0]["text"] for event in events[:-1])
    assert text
    assert whole.startswith(text)
    assert text != whole


def test_ignoring_what_was_delivered_is_seen(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    """With the resume members left out altogether, the property above does not hold."""
    body = {"model": MODEL, "prompt": "x", "stream": True, "max_tokens": 30}
    whole = seen(stage.engine.post(COMPLETIONS, body).text)
    monkeypatch.setattr(Journal, "resume_members", lambda journal: {})

    text = stage.run(COMPLETIONS, body, [Plan(1500, "reset")]).text

    with pytest.raises(AssertionError):
        assert seen(text) == whole
