"""How generations end: stop strings, clients that leave, deadlines, faults; and going on after."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from typing import Any

import httpx
import openai
import pytest

from tests.helpers.api_server import (
    MODEL,
    ApiServer,
    encode,
    make_backend,
    said,
    serving,
    tiny_tokenizer,
    wait_until,
)
from tgwui_k8s.config import EngineSection
from tgwui_k8s.errors import EngineUnavailableError, OverloadedError
from tgwui_k8s.observability.log import line_of

PATH = "/v1/completions"
BODY = {"model": MODEL, "prompt": "A recipe:", "max_tokens": 8}


@pytest.fixture(scope="module", name="server")
def _server() -> Iterator[ApiServer]:
    with serving(make_backend()) as server:
        yield server


@pytest.mark.parametrize("stream", [False, True])
def test_stop_string_ends_the_choice_in_the_engine(stream: bool) -> None:
    """The text is cut before the stop string, the engine is told, and the usage is exact."""
    with serving(make_backend()) as server:
        body = {**BODY, "max_tokens": 100, "stop": ["sugar, t", "never"], "n": 2, "stream": stream}
        if stream:
            body["stream_options"] = {"include_usage": True}
            events = [json.loads(event[6:]) for event in server.events(PATH, body)[:-1]]
        else:
            events = [server.post(PATH, body).json()]
        texts, reasons = ["", ""], [[], []]  # type: ignore[var-annotated]
        for event in events:
            for choice in event["choices"]:
                texts[choice["index"]] += choice["text"]
                reasons[choice["index"]].append(choice["finish_reason"])

        assert texts == ["Mix the flour with the "] * 2
        assert all(each[-1] == "stop" and set(each[:-1]) <= {None} for each in reasons)
        num_tokens = len(encode("Mix the flour with the sugar, then"))
        assert events[-1]["usage"]["completion_tokens"] == 2 * num_tokens
        request_id = server.backend.requests[0].request_id
        assert server.backend.aborted_choices == [(request_id, 0), (request_id, 1)]
        wait_until(lambda: not server.backend.running)


def test_closed_stream_aborts_the_request() -> None:
    """A client that stops reading frees the engine, and a metric counts it."""
    with serving(make_backend(hold_step=3)) as server:
        stream = server.client().completions.create(**BODY, stream=True)
        next(iter(stream))
        stream.close()

        wait_until(lambda: server.backend.aborted)
        wait_until(lambda: server.state.num_active_requests == 0)
        assert server.backend.aborted == [server.backend.requests[0].request_id]
        assert not server.state.stop_generation
        exposition = server.state.metrics.exposition()[0].decode()
        assert 'tgwui_requests_aborted_total{model_name="fake/model"} 1.0' in exposition


def test_client_that_hangs_up_on_a_whole_answer_aborts_it() -> None:
    """Without a stream, too, a connection that closes ends the work."""
    with serving(make_backend(hold_step=1)) as server:
        with pytest.raises(httpx.ReadTimeout):
            httpx.post(f"{server.url}{PATH}", json={**BODY, "prompt": ["a", "b"]}, timeout=0.3)

        wait_until(lambda: len(server.backend.aborted) == 2)
        wait_until(lambda: server.state.num_active_requests == 0)


def test_deadline_is_a_504_before_the_first_byte() -> None:
    """A request that is late gets an error that clients do not retry."""
    with serving(make_backend(hold_step=0)) as server:
        with pytest.raises(openai.InternalServerError) as caught:
            server.client().completions.create(**BODY, extra_body={"timeout_s": 0.1})

        assert caught.value.status_code == 504
        assert caught.value.code == "deadline_exceeded"
        wait_until(lambda: server.backend.aborted)


def test_deadline_in_mid_stream_is_an_event() -> None:
    """After the first byte the error comes inside the stream, which ends without [DONE]."""
    with serving(make_backend(hold_step=2)) as server:
        events = server.events(PATH, {**BODY, "stream": True, "timeout_s": 0.2})

        assert json.loads(events[-1][6:])["error"]["code"] == "deadline_exceeded"
        assert len(events) == 3
        wait_until(lambda: server.backend.aborted)


def test_engine_that_dies_in_mid_stream_is_told_to_the_client() -> None:
    """The client raises what the event says instead of taking half a text for a whole one."""
    fault = EngineUnavailableError("The engine stopped.")
    with serving(make_backend(fault=fault, fault_step=3)) as server:
        chunks = iter(server.client().completions.create(**BODY, stream=True))
        received = "".join(next(chunks).choices[0].text for _ in range(3))
        with pytest.raises(openai.APIError, match=r"The engine stopped\."):
            next(chunks)
        events = server.events(PATH, {**BODY, "stream": True})

    assert received == said(3)
    assert events[-1] != "data: [DONE]"


def test_bug_in_mid_stream_is_an_internal_error() -> None:
    """Whatever breaks, the client hears of it, and hears nothing that is not its business."""
    with serving(make_backend(fault=ZeroDivisionError("secret"), fault_step=1)) as server:
        events = server.events(PATH, {**BODY, "stream": True})

    error = json.loads(events[-1][6:])["error"]
    assert error["type"] == "server_error"
    assert "secret" not in error["message"]


@pytest.mark.parametrize("stream", [False, True])
def test_full_queue_is_a_503_with_retry_after(stream: bool) -> None:
    """Errors before the first byte are plain answers, for streams as well."""
    with serving(make_backend(refusal=OverloadedError("The queue is full."))) as server:
        response = server.post(PATH, {**BODY, "stream": stream})

    assert response.status_code == 503
    assert response.headers["retry-after"] == "1"
    assert response.json()["error"]["code"] == "overloaded"


def test_silent_stream_is_kept_alive() -> None:
    """Comments go out while nothing else does; they start the answer if need be."""
    with (
        serving(make_backend(hold_step=0), sse_keep_alive_seconds=0.05) as server,
        httpx.stream("POST", f"{server.url}{PATH}", json={**BODY, "stream": True}) as response,
    ):
        lines = response.iter_lines()
        assert [next(lines) for _ in range(4)] == [": keep-alive", "", ": keep-alive", ""]
        server.backend.released.set()
        rest = list(lines)

    assert rest[-2:] == ["data: [DONE]", ""]


def test_many_prompts_leave_room_for_others() -> None:
    """One client's prompts enter the engine's queue a few at a time."""
    with serving(make_backend(), engine=EngineSection(max_num_seqs=3)) as server:
        response = server.post(PATH, {"prompt": ["x"] * 20, "max_tokens": 3})

        assert [choice["text"] for choice in response.json()["choices"]] == [said(3)] * 20
        assert server.backend.most_running == 3


@pytest.mark.parametrize("stream", [False, True])
def test_resumed_generation_equals_the_uninterrupted_one(stream: bool) -> None:
    """What a client got before a failure, at any chunk, and what it gets after it are the whole."""
    body = {**BODY, "max_tokens": 40, "n": 2, "stop": ["then baker", "!Mix them"], "echo": True}
    body["return_token_ids"] = True
    with serving(make_backend()) as server:
        whole = server.post(PATH, body).json()
        events = [
            json.loads(event[6:]) for event in server.events(PATH, {**body, "stream": True})[:-1]
        ]
        for cut in range(len(events) + 1):
            before = events[:cut]
            resumed = {
                **body,
                "stream": stream,
                "resume_token_ids": [_ids(before, index) for index in range(2)],
                "resume_text_lengths": [_length(before, index) for index in range(2)],
            }
            if stream:
                resumed["stream_options"] = {"include_usage": True}
                after = [json.loads(event[6:]) for event in server.events(PATH, resumed)[:-1]]
            else:
                after = [server.post(PATH, resumed).json()]

            for index in range(2):
                choice = whole["choices"][index]
                assert _text(before, index) + _text(after, index) == choice["text"]
                assert _ids(before, index) + _ids(after, index) == choice["token_ids"]
                assert _choices(after, index)[0]["text_offset"] == _length(before, index)
            assert after[-1]["usage"]["completion_tokens"] == 2 * 40

    assert events[0]["choices"][0]["prompt_token_ids"] == tiny_tokenizer().encode("A recipe:")


def _choices(events: list[dict[str, Any]], index: int) -> list[dict[str, Any]]:
    return [c for event in events for c in event["choices"] if c["index"] == index]


def _text(events: list[dict[str, Any]], index: int) -> str:
    return "".join(choice["text"] for choice in _choices(events, index))


def _length(events: list[dict[str, Any]], index: int) -> int:
    """Code points of generated text: without the echoed prompt."""
    choices = _choices(events, index)
    return len(_text(events, index).removeprefix("A recipe:")) if choices else 0


def _ids(events: list[dict[str, Any]], index: int) -> list[int]:
    return [token_id for choice in _choices(events, index) for token_id in choice["token_ids"]]


def test_stop_generation_ends_it_with_what_there_is() -> None:
    """Stopping from outside is an end like any other."""
    with serving(make_backend(hold_step=2)) as server:
        stream = server.client().completions.create(**BODY, stream=True)
        chunks = iter(stream)
        texts = [next(chunks).choices[0].text, next(chunks).choices[0].text]
        (stop,) = server.state.stop_generation.values()
        server.backend.loop_call(stop)
        last = next(chunks).choices[0]

        assert "".join(texts) + last.text == said(2)
        assert last.finish_reason == "stop"
        assert server.backend.aborted_choices == [(server.backend.requests[0].request_id, 0)]
        wait_until(lambda: not server.backend.running)


def test_draining_server_refuses_new_requests() -> None:
    """Nothing new starts during a drain."""
    with serving(make_backend()) as server:
        server.state.draining = True
        response = server.post(PATH, BODY)

    assert response.status_code == 503
    assert response.json()["error"]["code"] == "draining"


def test_large_body_is_worked_on_beside_the_event_loop(monkeypatch: pytest.MonkeyPatch) -> None:
    """Probes must not wait for a long prompt to be tokenized."""
    threads: list[str] = []
    encode_text = tiny_tokenizer().encode
    monkeypatch.setattr(
        tiny_tokenizer(),
        "encode",
        lambda *args, **options: (
            threads.append(threading.current_thread().name),
            encode_text(*args, **options),
        )[1],
        raising=True,
    )
    with serving(make_backend()) as server:
        server.post(PATH, {**BODY, "prompt": "x"})
        server.post(PATH, {**BODY, "prompt": "x " * 50_000, "truncation_length": 5})

    assert threads[0] != threads[1]
    assert len(server.backend.requests[1].prompt_token_ids) == 5


@pytest.mark.parametrize("log_prompts", [False, True])
def test_log_line_holds_texts_only_where_they_are_wanted(
    log_prompts: bool, caplog: pytest.LogCaptureFixture
) -> None:
    """One line per generation, with what was said in it only under --log-prompts."""
    with (
        caplog.at_level("INFO", "tgwui_k8s"),
        serving(make_backend(), log_prompts=log_prompts) as server,
    ):
        server.post(PATH, BODY)
        wait_until(lambda: [r for r in caplog.records if r.getMessage() == "generation"])

    (record,) = [r for r in caplog.records if r.getMessage() == "generation"]
    fields = line_of(record)
    assert (fields["route"], fields["status"], fields["finish_reason"]) == (PATH, 200, "length")
    assert fields["completion_tokens"] == 8
    assert fields.get("prompts") == (["<s>A recipe:"] if log_prompts else None)
    assert fields.get("completions") == ([said(8)] if log_prompts else None)


def test_generation_is_measured(server: ApiServer) -> None:
    """Time to first token and the gaps between tokens reach the histograms."""
    server.post(PATH, BODY)

    exposition = server.state.metrics.exposition()[0].decode()
    counts = dict(
        line.rsplit(" ", 1) for line in exposition.splitlines() if not line.startswith("#")
    )
    label = '{model_name="fake/model"}'
    first = float(counts[f"tgwui_time_to_first_token_seconds_count{label}"])
    gaps = float(counts[f"tgwui_inter_token_latency_seconds_count{label}"])
    assert first >= 1
    assert gaps >= first
