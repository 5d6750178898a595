"""Completions through the official client and on the wire."""

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
    SAID,
    ApiServer,
    encode,
    make_backend,
    serving,
    tiny_tokenizer,
    wait_until,
)
from tests.helpers.fake_backend import FakeBackend, fake_logprobs
from tgwui_k8s.config import EngineSection
from tgwui_k8s.errors import EngineUnavailableError, OverloadedError
from tgwui_k8s.observability.log import line_of

PATH = "/v1/completions"
BODY = {"model": MODEL, "prompt": "A recipe:", "max_tokens": 8}


def said(num_tokens: int) -> str:
    """The text of the backend's first tokens."""
    return tiny_tokenizer().decode((encode(SAID) * 30)[:num_tokens])


@pytest.fixture(scope="module", name="server")
def _server() -> Iterator[ApiServer]:
    with serving(make_backend()) as server:
        yield server


def test_completion_has_text_reason_and_exact_usage(server: ApiServer) -> None:
    """The client gets what the backend said, and the tokens are counted."""
    completion = server.client().completions.create(**BODY)

    (choice,) = completion.choices
    assert choice.text == said(8)
    assert choice.finish_reason == "length"
    assert completion.object == "text_completion"
    assert completion.model == MODEL
    assert completion.system_fingerprint == "fp_fake"
    assert completion.usage is not None
    assert completion.usage.prompt_tokens == len(tiny_tokenizer().encode("A recipe:"))
    assert completion.usage.completion_tokens == 8
    assert completion.usage.total_tokens == completion.usage.prompt_tokens + 8
    assert completion.usage.prompt_tokens_details is not None
    assert completion.usage.prompt_tokens_details.cached_tokens == 2


def test_default_length_is_sixteen_or_what_the_context_has_left(server: ApiServer) -> None:
    """Without max_tokens a completion has OpenAI's 16 tokens, fewer where there is less room."""
    long_prompt = [5] * 190

    short = server.client().completions.create(model=MODEL, prompt="A")
    cut = server.client().completions.create(model=MODEL, prompt=long_prompt)

    assert short.usage is not None
    assert cut.usage is not None
    assert short.usage.completion_tokens == 16
    assert cut.usage.completion_tokens == 10


def test_stream_adds_up_to_the_whole(server: ApiServer) -> None:
    """All chunks share id, time and model; only the last one has a reason."""
    chunks = list(server.client().completions.create(**BODY, stream=True))

    assert "".join(chunk.choices[0].text for chunk in chunks) == said(8)
    assert len({(chunk.id, chunk.created, chunk.model) for chunk in chunks}) == 1
    reasons = [chunk.choices[0].finish_reason for chunk in chunks]
    assert reasons == [None] * (len(chunks) - 1) + ["length"]
    assert all(chunk.usage is None for chunk in chunks)


async def test_async_stream_ends_with_the_usage(server: ApiServer) -> None:
    """With include_usage the last chunk has no choices but the usage; the others say null."""
    async with server.async_client() as client:
        stream = await client.completions.create(
            **BODY, stream=True, stream_options={"include_usage": True}
        )
        chunks = [chunk async for chunk in stream]

    assert chunks[-1].choices == []
    assert chunks[-1].usage is not None
    assert chunks[-1].usage.completion_tokens == 8
    assert all(chunk.usage is None for chunk in chunks[:-1])


def test_events_on_the_wire(server: ApiServer) -> None:
    """Every event is one line of JSON, and the last one says that it is."""
    events = server.events(PATH, {**BODY, "stream": True})

    assert events[-1] == "data: [DONE]"
    chunks = [json.loads(event.removeprefix("data: ")) for event in events[:-1]]
    assert all(chunk["object"] == "text_completion" for chunk in chunks)
    assert all("usage" not in chunk for chunk in chunks)
    assert chunks[0]["choices"][0]["finish_reason"] is None


def test_choices_are_numbered_through_all_prompts() -> None:
    """The choices of the first prompt come first."""
    with serving(FakeBackend(lambda request, index: encode(f"{index}") * 9)) as server:
        body = {"prompt": ["one", "two", "three"], "n": 2, "max_tokens": 3}
        completion = server.client().completions.create(model=MODEL, **body)
        streamed = ["", "", "", "", "", ""]
        for chunk in server.client().completions.create(model=MODEL, **body, stream=True):
            streamed[chunk.choices[0].index] += chunk.choices[0].text

    assert [choice.index for choice in completion.choices] == [0, 1, 2, 3, 4, 5]
    assert [choice.text for choice in completion.choices] == ["000", "111"] * 3
    assert streamed == ["000", "111"] * 3


@pytest.mark.parametrize("prompt", ["text", ["text", "more text"], [5, 6, 7], [[5, 6], [7]], ""])
def test_prompts_come_as_text_or_token_ids(server: ApiServer, prompt: object) -> None:
    """The engine gets token ids, whichever way the prompt was sent; nothing starts from BOS."""
    tokenizer = tiny_tokenizer()
    first = len(server.backend.requests)

    assert server.post(PATH, {"prompt": prompt, "max_tokens": 1}).status_code == 200

    if isinstance(prompt, str):
        expected = [tokenizer.encode(prompt) or [tokenizer.bos_token_id]]
    elif isinstance(prompt[0], int):  # type: ignore[index]
        expected = [prompt]  # type: ignore[list-item]
    else:
        expected = [tokenizer.encode(p) if isinstance(p, str) else p for p in prompt]  # type: ignore[attr-defined]
    sent = [list(request.prompt_token_ids) for request in server.backend.requests[first:]]
    assert sent == expected


def test_logprobs_are_parallel_lists(server: ApiServer) -> None:
    """Token, log probability, alternatives and offset stand at the same place in four lists."""
    completion = server.client().completions.create(**BODY, logprobs=3)

    (choice,) = completion.choices
    logprobs = choice.logprobs
    assert logprobs is not None
    assert logprobs.tokens is not None
    assert "".join(logprobs.tokens) == choice.text
    ids = encode(SAID)[:8]
    expected = [fake_logprobs(token_id, 3, i + 1, 0).logprob for i, token_id in enumerate(ids)]
    assert logprobs.token_logprobs == expected
    assert logprobs.top_logprobs is not None
    assert all(len(top) == 4 for top in logprobs.top_logprobs)
    assert [
        top[token] for top, token in zip(logprobs.top_logprobs, logprobs.tokens, strict=True)
    ] == expected
    assert logprobs.text_offset is not None
    assert [choice.text[offset:][:1] for offset in logprobs.text_offset] == [
        token[:1] for token in logprobs.tokens
    ]


def test_echo_with_logprobs_scores_the_prompt(server: ApiServer) -> None:
    """What evaluation harnesses ask: the prompt's log probabilities and not one new token."""
    completion = server.client().completions.create(
        model=MODEL, prompt="A größer cake", max_tokens=0, echo=True, logprobs=1
    )

    (choice,) = completion.choices
    assert choice.text == "A größer cake"
    assert choice.finish_reason == "length"
    logprobs = choice.logprobs
    assert logprobs is not None
    token_ids = tiny_tokenizer().encode("A größer cake")
    assert logprobs.token_logprobs is not None
    assert logprobs.token_logprobs[0] is None
    assert len(logprobs.token_logprobs) == len(token_ids)
    assert logprobs.top_logprobs is not None
    assert logprobs.top_logprobs[0] is None
    assert logprobs.text_offset == sorted(logprobs.text_offset or [])
    assert completion.usage is not None
    assert completion.usage.completion_tokens == 0


@pytest.mark.parametrize("stream", [False, True])
def test_echo_puts_the_prompt_in_front_of_every_choice(server: ApiServer, stream: bool) -> None:
    """Text, logprobs and offsets of the completion follow those of the prompt."""
    body = {**BODY, "echo": True, "logprobs": 0, "n": 2, "stream": stream}
    texts, offsets = ["", ""], [[], []]  # type: ignore[var-annotated]
    if stream:
        events = [json.loads(event[6:]) for event in server.events(PATH, body)[:-1]]
    else:
        events = [server.post(PATH, body).json()]
    for event in events:
        for choice in event["choices"]:
            texts[choice["index"]] += choice["text"]
            offsets[choice["index"]] += choice["logprobs"]["text_offset"]

    assert texts == ["A recipe:" + said(8)] * 2
    num_prompt_tokens = len(tiny_tokenizer().encode("A recipe:"))
    assert [len(each) for each in offsets] == [num_prompt_tokens + 8] * 2
    assert offsets[0][num_prompt_tokens] == len("A recipe:")


def test_best_of_returns_the_likeliest_choices() -> None:
    """More are generated than returned; all of them are paid for."""
    with serving(FakeBackend(lambda request, index: encode(f"{index}") * 9)) as server:
        completion = server.client().completions.create(
            model=MODEL, prompt=["a", "b"], n=2, best_of=4, max_tokens=3
        )

    assert [choice.text for choice in completion.choices] == ["333", "222"] * 2
    assert [choice.index for choice in completion.choices] == [0, 1, 2, 3]
    assert all(choice.logprobs is None for choice in completion.choices)
    assert completion.usage is not None
    assert completion.usage.completion_tokens == 2 * 4 * 3
    assert {request.num_choices for request in server.backend.requests} == {4}


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


def test_end_of_sequence_token_counts_but_has_no_text() -> None:
    """A model that ends by itself ends with "stop"."""
    with serving(FakeBackend(lambda request, index: [*encode("Done."), 1])) as server:
        completion = server.client().completions.create(**{**BODY, "max_tokens": 50})

    assert completion.choices[0].text == "Done."
    assert completion.choices[0].finish_reason == "stop"
    assert completion.usage is not None
    assert completion.usage.completion_tokens == len(encode("Done.")) + 1


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


@pytest.mark.parametrize(
    ("change", "param", "code"),
    [
        ({"max_tokens": 0}, "max_tokens", "integer_below_min_value"),
        ({"stream_options": {}}, "stream_options", "invalid_value"),
        ({"n": 3, "best_of": 2}, "best_of", "invalid_value"),
        ({"n": 1, "best_of": 2, "stream": True}, "best_of", "invalid_value"),
        ({"min_tokens": 9}, "min_tokens", "integer_above_max_value"),
        ({"timeout_s": 601}, "timeout_s", "decimal_above_max_value"),
        ({"prompt": [512]}, "prompt", "invalid_value"),
        ({"prompt": [3, "x"]}, "prompt.1", "invalid_type"),
        ({"stop_token_ids": [512]}, "stop_token_ids", "invalid_value"),
        ({"logit_bias": {"512": 1}}, "logit_bias", "invalid_value"),
        ({"logit_bias": {"-5": 1}}, "logit_bias.-5", "integer_below_min_value"),
        ({"logit_bias": {"5": 200}}, "logit_bias.5", "decimal_above_max_value"),
        ({"custom_token_bans": "3,9999999999"}, "custom_token_bans", "invalid_value"),
        ({"resume_token_ids": [[3], [4]]}, "resume_token_ids", "invalid_value"),
        ({"resume_text_lengths": [1]}, "resume_text_lengths", "invalid_value"),
        ({"suffix": "end"}, "suffix", "unsupported_parameter"),
        ({"prompt": [3], "suffix": "end"}, "suffix", None),
        ({"prompt": ["x"] * 200, "n": 100}, "prompt", "invalid_value"),
        ({"mirostat_mode": 1}, "mirostat_mode", "unsupported_parameter"),
        ({"preset": "no-such-preset"}, "preset", None),
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
    assert code is None or error["code"] == code
    assert len(server.backend.requests) == num_requests


@pytest.mark.parametrize(
    ("change", "num_prompt_tokens"),
    [
        ({"prompt": [5] * 195, "max_tokens": 6}, 195),
        ({"prompt": [5] * 200, "max_tokens": None}, 200),
    ],
)
def test_what_does_not_fit_the_context_is_refused(
    server: ApiServer, change: dict[str, object], num_prompt_tokens: int
) -> None:
    """The error says how long the prompt is and how long the context."""
    response = server.post(PATH, {**BODY, **change})

    assert response.status_code == 400
    error = response.json()["error"]
    assert error["code"] == "context_length_exceeded"
    assert (error["n_prompt_tokens"], error["n_ctx"]) == (num_prompt_tokens, 200)


def test_unknown_model_is_a_404_and_an_alias_is_not(server: ApiServer) -> None:
    """Every served name is accepted; the first is reported."""
    with pytest.raises(openai.NotFoundError) as caught:
        server.client().completions.create(**{**BODY, "model": "other"})

    assert caught.value.code == "model_not_found"
    assert server.client().completions.create(**{**BODY, "model": "alias"}).model == MODEL


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
