"""Completions through the official client and on the wire."""

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
)
from tests.helpers.fake_backend import FakeBackend, fake_info, fake_logprobs

PATH = "/v1/completions"
BODY = {"model": MODEL, "prompt": "A recipe:", "max_tokens": 8}


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


def test_end_of_sequence_token_counts_but_has_no_text() -> None:
    """A model that ends by itself ends with "stop"."""
    with serving(FakeBackend(lambda request, index: [*encode("Done."), 1])) as server:
        completion = server.client().completions.create(**{**BODY, "max_tokens": 50})

    assert completion.choices[0].text == "Done."
    assert completion.choices[0].finish_reason == "stop"
    assert completion.usage is not None
    assert completion.usage.completion_tokens == len(encode("Done.")) + 1


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
        ({"dry_sequence_breakers": "a, b"}, "dry_sequence_breakers", "invalid_value"),
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


def test_empty_prompt_without_bos_starts_from_the_end_of_another_text(server: ApiServer) -> None:
    """A model must start from something; OpenAI starts there, too."""
    server.post(PATH, {**BODY, "prompt": "", "add_bos_token": False})

    assert server.backend.requests[-1].prompt_token_ids == (1,)


def test_model_without_any_token_to_start_from_refuses_an_empty_prompt() -> None:
    """There is nothing to compute."""
    with serving(make_backend(info=fake_info(eos_token_ids=()))) as server:
        response = server.post(PATH, {**BODY, "prompt": "", "add_bos_token": False})

    assert response.status_code == 400
    assert response.json()["error"]["param"] == "prompt"


@pytest.mark.parametrize(
    "change", [{"prompt": encode("A cake")}, {"prompt": "Take A cake", "truncation_length": 3}]
)
def test_echo_of_what_the_model_saw(server: ApiServer, change: dict[str, Any]) -> None:
    """Token ids are echoed as text, and a prompt that was cut as what was left of it."""
    response = server.post(PATH, {**BODY, **change, "echo": True, "max_tokens": 0})

    seen = tiny_tokenizer().decode(server.backend.requests[-1].prompt_token_ids)
    assert response.json()["choices"][0]["text"] == seen
    assert seen.endswith("cake")


def test_best_of_without_tokens_has_nothing_to_rank(server: ApiServer) -> None:
    """Choices of no tokens are equal."""
    body = {**BODY, "echo": True, "max_tokens": 0, "best_of": 2}

    assert server.post(PATH, body).json()["choices"][0]["text"] == "A recipe:"
