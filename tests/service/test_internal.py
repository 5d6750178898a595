"""text-generation-webui's own routes over HTTP."""

from __future__ import annotations

import asyncio
import math
from pathlib import Path
from typing import Any

import pytest

from tests.helpers.api_server import make_backend
from tests.helpers.api_server import make_state as make_fake_state
from tests.helpers.app_client import app_client
from tests.helpers.still_backend import StillBackend, make_state
from tgwui_k8s.api.state import ServerState
from tgwui_k8s.config import ModelSettings, Settings
from tgwui_k8s.contract import TokenDelta, TopLogprobs
from tgwui_k8s.errors import BrokenModelError, ModelNotFoundError


class RecordingControl:
    """Changes no model; remembers what it was told, and fails where it is told to."""

    def __init__(self, error: Exception | None = None) -> None:
        self.loaded: list[Settings] = []
        self.num_unloads = 0
        self._error = error

    async def load(self, settings: Settings) -> None:
        if self._error is not None:
            raise self._error
        self.loaded.append(settings)

    async def unload(self) -> None:
        self.num_unloads += 1


async def _call(
    method: str, path: str, body: Any = None, state: ServerState | None = None
) -> tuple[int, Any]:
    async with app_client(state or make_state(), authorization="Bearer root") as client:
        answer = await client.request(method, f"/v1/internal{path}", json=body)
    return answer.status_code, answer.json()


@pytest.mark.parametrize(
    ("path", "body", "expected"),
    [
        ("/encode", {"text": "ab"}, {"tokens": [0, 70, 71], "length": 3}),
        ("/decode", {"tokens": [0, 70, 71]}, {"text": "ab"}),
        ("/token-count", {"text": "abc"}, {"length": 4}),
        (
            "/chat-prompt",
            {"messages": [{"role": "user", "content": "hi"}]},
            {"prompt": "<s><|user|>\nhi</s>\n<|assistant|>\n"},
        ),
    ],
)
async def test_tokens_and_prompts_have_upstreams_shapes(
    path: str, body: dict[str, Any], expected: dict[str, Any]
) -> None:
    """Clients of text-generation-webui find what they know."""
    assert await _call("POST", path, body) == (200, expected)


@pytest.mark.parametrize(
    ("path", "body", "param"),
    [
        ("/encode", {}, "text"),
        ("/encode", {"text": None}, "text"),
        ("/decode", {"tokens": [999]}, "tokens"),
        ("/token-count", {"text": "a", "more": 1}, "more"),
        ("/chat-prompt", {"messages": []}, "messages"),
        ("/chat-prompt", {"messages": [{"role": "user", "content": "x"}], "tools": [1]}, "tools.0"),
        ("/logits", {"prompt": "a", "top_logits": 0}, "top_logits"),
        ("/logits", {"prompt": "a", "stream": True}, "stream"),
    ],
)
async def test_wrong_bodies_are_named(path: str, body: dict[str, Any], param: str) -> None:
    """Strict, like every other route."""
    status, answer = await _call("POST", path, body)
    assert (status, answer["error"]["param"]) == (400, param)


def _backend_with_logits() -> StillBackend:
    logprobs = TopLogprobs(
        72, math.log(0.1), 3, (70, 71, 72), tuple(map(math.log, (0.6, 0.3, 0.1)))
    )
    return StillBackend(TokenDelta(0, (72,), "length", logprobs=(logprobs,)))


async def test_logits_are_tokens_with_their_probabilities() -> None:
    """One token is generated, greedily or not; the most likely ones come back, best first."""
    backend = _backend_with_logits()
    body = {"prompt": "ab", "top_logits": 2}
    status, answer = await _call("POST", "/logits", body, make_state(backend))
    assert status == 200
    assert list(answer) == ["a", "b"]
    assert answer == pytest.approx({"a": 0.6, "b": 0.3})
    params = backend.requests[0].params
    assert (params.max_tokens, params.logprobs, params.logprobs_after_sampling) == (1, 2, False)


async def test_logits_after_samplers_are_the_samplers() -> None:
    """With use_samplers the request's samplers count, and 50 tokens are the default."""
    backend = _backend_with_logits()
    body = {"prompt": "ab", "use_samplers": True, "top_k": 5, "temperature": 0.5}
    status, _ = await _call("POST", "/logits", body, make_state(backend))
    params = backend.requests[0].params
    assert (status, params.logprobs, params.logprobs_after_sampling) == (200, 50, True)
    assert (params.top_k, params.temperature) == (5, 0.5)


async def test_samplers_without_use_samplers_are_refused() -> None:
    """They would be ignored otherwise."""
    status, answer = await _call("POST", "/logits", {"prompt": "a", "top_k": 5})
    assert (status, answer["error"]["param"]) == (400, "top_k")


async def test_stop_generation_stops_everything_and_counts_it() -> None:
    """Like upstream's button, but it says what it did."""
    state, stopped = make_state(), []
    state.stop_generation["a"] = lambda: stopped.append("a")
    state.stop_generation["b"] = lambda: stopped.append("b")
    assert await _call("POST", "/stop-generation", state=state) == (200, {"stopped": 2})
    assert stopped == ["a", "b"]


OUR_PAGE = "https://page.example"


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({}, 200),
        ({"sec-fetch-site": "none"}, 200),
        ({"sec-fetch-site": "same-origin", "origin": "https://seen.by.the.proxy"}, 200),
        ({"origin": "http://test"}, 200),
        ({"sec-fetch-site": "cross-site", "origin": OUR_PAGE}, 200),
        ({"sec-fetch-site": "cross-site", "origin": "https://evil.example"}, 403),
        ({"sec-fetch-site": "cross-site"}, 403),
        ({"sec-fetch-site": "same-site", "origin": "http://test:8080"}, 403),
        ({"origin": "http://evil.example"}, 403),
        ({"origin": "http://test:8080"}, 403),
        ({"origin": "null"}, 403),
        ({"origin": "http://[::1"}, 403),
    ],
)
async def test_other_sites_pages_cannot_stop_generations(
    headers: dict[str, str], status: int
) -> None:
    """A page may send such a request without asking: it has no body and needs no header."""
    async with app_client(make_state(cors_origin=(OUR_PAGE,))) as client:
        answer = await client.post("/v1/internal/stop-generation", headers=headers)
    assert answer.status_code == status


async def test_cors_for_all_is_for_all() -> None:
    """Whoever says so means it."""
    headers = {"sec-fetch-site": "cross-site", "origin": "https://any.example"}
    async with app_client(make_state(cors_origin=("*",))) as client:
        answer = await client.post("/v1/internal/stop-generation", headers=headers)
    assert answer.status_code == 200


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/v1/internal/logits", {"prompt": "a"}),
        ("/v1/completions", {"prompt": "abc", "echo": True, "logprobs": 1}),
    ],
)
async def test_what_is_stopped_before_its_first_token_is_an_answer(
    path: str, body: dict[str, Any]
) -> None:
    """Without log probabilities: there are none yet, neither of the prompt."""
    state = make_fake_state(make_backend(hold_step=0))
    async with app_client(state) as client:
        answering = asyncio.create_task(client.post(path, json=body))
        while not state.stop_generation:  # noqa: ASYNC110 - set by the server's code
            await asyncio.sleep(0.001)
        await client.post("/v1/internal/stop-generation")
        answer = await answering

    assert answer.status_code == 200, answer.text
    if path == "/v1/internal/logits":
        assert answer.json() == {}
        return
    (choice,) = answer.json()["choices"]
    assert choice["text"] == "abc"
    lists = [choice["logprobs"][name] for name in ("token_logprobs", "top_logprobs")]
    assert lists == [[None] * len(choice["logprobs"]["tokens"])] * 2


async def test_model_info_has_upstreams_fields_and_the_facts() -> None:
    """Name, loader, adapters; and what else is known."""
    status, answer = await _call("GET", "/model/info")
    assert status == 200
    assert (answer["model_name"], answer["loader"], answer["lora_names"]) == ("still", "still", [])
    assert answer["max_model_len"] == 64
    assert "eos_token" in answer["special_tokens"]
    assert "tokenizer_json" not in answer


async def test_model_info_without_a_model_is_a_503() -> None:
    """Nothing to tell."""
    status, _ = await _call("GET", "/model/info", state=make_state(is_loaded=False))
    assert status == 503


async def test_models_that_can_be_loaded_are_listed(tmp_path: Path) -> None:
    """The built-in one and those of the directory; a missing directory is an empty one."""
    (tmp_path / "llama").mkdir()
    (tmp_path / "llama" / "config.json").write_text("{}")
    for directory, names in ((tmp_path, ["demo", "llama"]), (tmp_path / "none", ["demo"])):
        state = make_state()
        state.settings = Settings(model=ModelSettings(model_dir=str(directory)))
        assert await _call("GET", "/model/list", state=state) == (200, {"model_names": names})


def _controlled(control: RecordingControl) -> ServerState:
    state = make_state(admin_key=("root",))
    state.model_control = control
    return state


async def test_a_model_is_loaded_with_its_arguments() -> None:
    """Arguments are settings, with dashes or underscores, text or numbers."""
    control = RecordingControl()
    args = {"max-model-len": 128, "kv_cache_memory": "1GiB", "dtype": "float32", "device": None}
    body = {"model_name": "org/next", "args": args}
    assert await _call("POST", "/model/load", body, _controlled(control)) == (200, "OK")
    (settings,) = control.loaded
    assert (settings.model.model, settings.model.max_model_len) == ("org/next", 128)
    assert (settings.model.dtype, settings.engine.kv_cache_memory) == ("float32", 2**30)


async def test_what_was_said_of_the_first_model_is_not_true_of_the_next() -> None:
    """Its loader, name and context are forgotten; the machine's settings stay."""
    control = RecordingControl()
    state = _controlled(control)
    first = ModelSettings(
        loader="fake", served_model_name=("x",), max_model_len=8, model_dir="/m", device="cpu"
    )
    state.settings = Settings(model=first, server=state.settings.server)
    await _call("POST", "/model/load", {"model_name": "next"}, state)
    model = control.loaded[0].model
    assert (model.loader, model.served_model_name, model.max_model_len) == ("auto", (), None)
    assert (model.model_dir, model.device) == ("/m", "cpu")


@pytest.mark.parametrize(
    ("args", "param"),
    [
        ({"trust_remote_code": True}, "args.trust_remote_code"),
        ({"trust-remote-code": True}, "args.trust_remote_code"),
        ({"chat_template": "/etc/passwd"}, "args.chat_template"),
        ({"model_dir": "/"}, "args.model_dir"),
        ({"api_key_file": "/x"}, "args.api_key_file"),
        ({"ctx": 1}, "args.ctx"),
        ({"dtype": "int3"}, "args.dtype"),
        ({"max_model_len": "many"}, "args.max_model_len"),
    ],
)
async def test_what_a_client_may_not_choose_is_refused(args: dict[str, Any], param: str) -> None:
    """Whose code runs and which files are read is the operator's business."""
    control = RecordingControl()
    body = {"model_name": "next", "args": args}
    status, answer = await _call("POST", "/model/load", body, _controlled(control))
    assert (status, answer["error"]["param"]) == (400, param)
    assert control.loaded == []


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (ModelNotFoundError("there is no model 'x'"), 404),
        (BrokenModelError("/mnt/efs/x/config.json is not JSON"), 400),
    ],
)
async def test_a_model_that_cannot_be_loaded_is_said_so(error: Exception, status: int) -> None:
    """A 4xx with the reason and without folders."""
    state = _controlled(RecordingControl(error))
    actual, answer = await _call("POST", "/model/load", {"model_name": "x"}, state)
    assert actual == status
    assert "/mnt" not in answer["error"]["message"]


async def test_unload_unloads() -> None:
    """One call, one unload."""
    control = RecordingControl()
    assert await _call("POST", "/model/unload", state=_controlled(control)) == (200, "OK")
    assert control.num_unloads == 1


async def test_a_server_that_cannot_change_its_model_says_so() -> None:
    """Not every way of running has a second model."""
    status, answer = await _call("POST", "/model/unload", state=make_state(admin_key=("root",)))
    assert (status, answer["error"]["code"]) == (400, "unsupported_parameter")
