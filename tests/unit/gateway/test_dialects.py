"""Our completions in other engines' words, and their answers in ours."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.helpers.gateway_calls import call_of
from tgwui_k8s.errors import InvalidRequestError, UnsupportedParameterError
from tgwui_k8s.gateway.call import CHAT, COMPLETIONS, Call
from tgwui_k8s.gateway.dialects import DIALECTS, dialects_for
from tgwui_k8s.gateway.dialects.text_generation import StopCutter
from tgwui_k8s.gateway.event_stream import data_of
from tgwui_k8s.gateway.failures import BrokenFramingError, EndpointError

TGI, KSERVE, VLLM = DIALECTS["tgi"], DIALECTS["kserve"], DIALECTS["vllm"]


def completion(**fields: Any) -> Call:
    """A completion call."""
    return call_of(json.dumps({"model": "m", "prompt": "Hi", **fields}).encode())


def events(raw: bytes) -> list[Any]:
    """The events of some bytes for a client."""
    blocks = [data_of(block) for block in raw.split(b"\n\n") if block]
    return [block if block == b"[DONE]" else json.loads(block) for block in blocks]


def event(**fields: Any) -> bytes:
    """An engine's event."""
    return b"data:" + json.dumps(fields).encode()


# ---------------------------------------------------------------------------------------- TGI


def test_tgi_gets_its_own_names() -> None:
    """Limits, sampling and stop strings; details are asked for."""
    call = completion(max_tokens=5, temperature=0.5, top_p=0.9, seed=1, stop="x", n=1, user="me")
    target, body = TGI.request(call, None)
    assert target == "/generate"
    assert json.loads(body) == {
        "inputs": "Hi",
        "parameters": {
            "max_new_tokens": 5,
            "temperature": 0.5,
            "top_p": 0.9,
            "seed": 1,
            "stop": ["x"],
            "do_sample": True,
            "details": True,
        },
    }


def test_tgi_is_greedy_at_temperature_zero() -> None:
    """It refuses the temperature 0 itself."""
    target, body = TGI.request(completion(temperature=0, stream=True), None)
    assert target == "/generate_stream"
    assert json.loads(body)["parameters"] == {
        "max_new_tokens": 16,
        "do_sample": False,
        "details": True,
    }


def test_tgi_answers_without_the_stop_string() -> None:
    """It leaves it in its text; OpenAI does not."""
    answer = {
        "generated_text": "one two STOP",
        "details": {
            "finish_reason": "stop_sequence",
            "generated_tokens": 4,
            "prefill": [{"id": 1}, {"id": 2}],
        },
    }
    body = TGI.answer(completion(stop=["STOP"]), 200, json.dumps(answer).encode())
    found = json.loads(body)
    assert found["choices"][0]["text"] == "one two "
    assert found["choices"][0]["finish_reason"] == "stop"
    assert found["usage"] == {"prompt_tokens": 2, "completion_tokens": 4, "total_tokens": 6}


def test_tgi_streams_become_chunks_and_an_end() -> None:
    """Text as it comes, nothing of a stop string, special tokens without text, usage, `[DONE]`."""
    call = completion(stream=True, stop="END", stream_options={"include_usage": True})
    stream = TGI.new_stream(call)
    raw = b"".join(
        stream.take(event(token={"text": text, "special": text == "</s>"}, details=None))
        for text in ("a", "bE", "N", "x EN")
    )
    details = {"finish_reason": "length", "generated_tokens": 5, "input_length": 7}
    raw += stream.take(event(token={"text": "D!", "special": False}, details=details))
    found = events(raw)
    assert "".join(one["choices"][0]["text"] for one in found[:-2]) == "abENx "
    assert found[-3]["choices"][0]["finish_reason"] == "length"
    assert found[-2]["usage"]["total_tokens"] == 12
    assert found[-1] == b"[DONE]"
    assert stream.is_complete
    assert len({one["id"] for one in found[:-1]}) == 1


def test_tgi_errors_in_a_stream() -> None:
    """Overload is another endpoint's chance, a wrong request is not."""
    for kind, can_retry in (("overloaded", True), ("validation", False)):
        with pytest.raises(EndpointError) as caught:
            TGI.new_stream(completion(stream=True)).take(event(error="no", error_type=kind))
        assert caught.value.is_retryable is can_retry
    with pytest.raises(BrokenFramingError):
        TGI.new_stream(completion(stream=True)).take(b"data: nonsense")


def test_tgi_errors_get_our_envelope() -> None:
    """422 is a 400 here."""
    status, body = TGI.error(422, b'{"error": "too long", "error_type": "validation"}')
    assert status == 400
    assert json.loads(body)["error"] == {
        "message": "too long",
        "type": "invalid_request_error",
        "param": None,
        "code": None,
    }
    assert TGI.error(502, b"<html>")[0] == 502


def test_a_stream_that_ends_early_is_not_complete() -> None:
    """TGI says when it is done; silence is a loss."""
    stream = TGI.new_stream(completion(stream=True))
    stream.take(event(token={"text": "a"}, details=None))
    assert stream.finish() is None


# ------------------------------------------------------------------------------------- KServe


def test_kserve_gets_text_and_parameters() -> None:
    """The model is in the path, quoted."""
    call = call_of(b'{"model": "a/b c", "prompt": "Hi", "top_k": 3}')
    target, body = KSERVE.request(call, None)
    assert target == "/v2/models/a%2Fb%20c/generate"
    assert json.loads(body) == {
        "text_input": "Hi",
        "parameters": {"max_tokens": 16, "top_k": 3, "stream": False},
    }
    answer = KSERVE.answer(call, 200, b'{"model_name": "a", "text_output": "there"}')
    assert json.loads(answer)["choices"][0]["text"] == "there"


def test_kserve_streams_end_with_their_connection() -> None:
    """There is no other mark."""
    call = completion(stream=True)
    stream = KSERVE.new_stream(call)
    raw = stream.take(event(text_output="a")) + stream.take(event(text_output="b"))
    assert not stream.is_complete
    last = stream.finish()
    assert last is not None
    found = events(raw + last)
    assert [one["choices"][0]["text"] for one in found[:-1]] == ["a", "b", ""]
    assert found[-2]["choices"][0]["finish_reason"] == "stop"
    assert found[-1] == b"[DONE]"
    with pytest.raises(EndpointError):
        KSERVE.new_stream(call).take(event(error="no"))


# ---------------------------------------------------------------------------------------- all


@pytest.mark.parametrize("dialect", ["tgi", "kserve"])
@pytest.mark.parametrize(
    "field", [{"n": 2}, {"echo": True}, {"logprobs": 3}, {"mirostat_mode": 2}, {"unheard_of": 1}]
)
def test_what_an_engine_cannot_do_is_refused_by_name(dialect: str, field: dict[str, Any]) -> None:
    """Nothing is dropped in silence."""
    with pytest.raises(UnsupportedParameterError) as caught:
        DIALECTS[dialect].request(completion(**field), None)  # type: ignore[index]
    assert caught.value.param == next(iter(field))


def test_neutral_values_are_no_reason_to_refuse() -> None:
    """Clients send them as a matter of course."""
    call = completion(n=1, echo=False, logprobs=None, best_of=1, return_token_ids=False)
    TGI.request(call, None)


@pytest.mark.parametrize("prompt", [["a", "b"], [1, 2], None])
def test_generate_calls_take_one_text(prompt: Any) -> None:
    """Other prompts are the request's mistake here."""
    with pytest.raises(InvalidRequestError) as caught:
        TGI.request(completion(prompt=prompt), None)
    assert caught.value.param == "prompt"


def test_old_errors_of_vllm_get_an_envelope() -> None:
    """They had none."""
    status, body = VLLM.error(400, b'{"object": "error", "message": "too long", "code": 400}')
    assert (status, json.loads(body)["error"]["message"]) == (400, "too long")
    modern = b'{"error": {"message": "x", "type": "y", "param": null, "code": 400}}'
    assert VLLM.error(400, modern) == (400, modern)
    assert VLLM.error(500, b"oops")[0] == 500


def test_routes_go_to_engines_that_have_them() -> None:
    """Conversations need a template, embeddings an engine that makes them."""
    assert dialects_for(COMPLETIONS) == frozenset(DIALECTS)
    assert "kserve" not in dialects_for(CHAT)
    assert dialects_for("/v1/internal/encode") == {"tgwui"}


@settings(deadline=None)
@given(st.text("abEND", max_size=30), st.lists(st.integers(1, 5), max_size=30))
def test_stop_strings_are_cut_wherever_the_pieces_end(text: str, sizes: list[int]) -> None:
    """The pieces together are the text up to the first stop string, and no piece shows more."""
    stop = ["END", "ba"]
    places = [text.find(one) for one in stop if one in text]
    expected = text[: min(places)] if places else text
    cutter, given_out, position = StopCutter(stop), "", 0
    for size in sizes:
        given_out += cutter.feed(text[position : position + size])
        position += size
        assert expected.startswith(given_out)
    given_out += cutter.feed(text[position:], is_last=True)
    assert given_out == expected
