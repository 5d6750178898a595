"""SageMaker's routes: through boto3, and on the wire."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from botocore.exceptions import ClientError

from tests.helpers.api_server import (
    SAID,
    ApiServer,
    encode,
    make_backend,
    said,
    serving,
    tiny_tokenizer,
)
from tests.helpers.app_client import app_client
from tests.helpers.fake_backend import FakeBackend
from tests.helpers.sagemaker_front import sagemaker_client
from tests.helpers.still_backend import StillBackend, make_state
from tgwui_k8s.api.schemas.invocations import InvocationParameters, InvocationRequest

PATH = "/invocations"
INPUTS = "A recipe:"


@pytest.fixture(scope="module", name="server")
def _server() -> Iterator[ApiServer]:
    with serving(make_backend()) as server:
        yield server


@pytest.fixture(scope="module", name="boto")
def _boto(server: ApiServer) -> Iterator[Any]:
    with sagemaker_client(server.url) as client:
        yield client


def invoke(boto: Any, body: dict[str, Any]) -> Any:
    """One answer through boto3."""
    answer = boto.invoke_endpoint(
        EndpointName="any", ContentType="application/json", Body=json.dumps(body)
    )
    return json.load(answer["Body"])


def invoke_stream(boto: Any, body: dict[str, Any]) -> bytes:
    """All bytes of a stream through boto3, as its event parser cuts them."""
    answer = boto.invoke_endpoint_with_response_stream(
        EndpointName="any", ContentType="application/json", Body=json.dumps(body)
    )
    return b"".join(event["PayloadPart"]["Bytes"] for event in answer["Body"])


def test_inputs_are_answered_with_generated_text(boto: Any) -> None:
    """Without parameters: thirty tokens, and nothing but the text."""
    assert invoke(boto, {"inputs": INPUTS}) == {"generated_text": said(30)}


def test_details_say_how_it_ended_and_list_the_tokens(boto: Any) -> None:
    """The tokens' texts together are the text; the counts and the reason are true."""
    parameters = {"max_new_tokens": 6, "details": True}
    answer = invoke(boto, {"inputs": INPUTS, "parameters": parameters})
    details = answer["details"]
    assert details["finish_reason"] == "length"
    assert details["generated_tokens"] == 6
    assert details["inputs"] == INPUTS
    assert [token["id"] for token in details["tokens"]] == encode(SAID)[:6]
    assert "".join(token["text"] for token in details["tokens"]) == answer["generated_text"]
    assert all(token["log_prob"] <= 0 for token in details["tokens"])


@pytest.mark.parametrize("num_tokens", [1, 7, 40])
def test_a_stream_is_a_line_per_token_and_a_last_one_with_all(boto: Any, num_tokens: int) -> None:
    """Texts of all lines make the text that the last line repeats, whole characters only."""
    body = {"inputs": INPUTS, "parameters": {"max_new_tokens": num_tokens}, "stream": True}
    lines = [json.loads(line) for line in invoke_stream(boto, body).splitlines()]
    assert "".join(line["token"]["text"] for line in lines) == said(num_tokens)
    ids = [line["token"]["id"] for line in lines]
    assert ids == (encode(SAID) * 30)[:num_tokens]
    assert all(set(line) == {"token"} for line in lines[:-1])
    assert lines[-1]["generated_text"] == said(num_tokens)
    assert lines[-1]["details"] == {
        "finish_reason": "length",
        "generated_tokens": num_tokens,
        "inputs": INPUTS,
    }


def test_stop_sequences_end_the_text(boto: Any) -> None:
    """The stop string is no output, and the reason names it; both spellings work."""
    for name in ("stop_sequences", "stop"):
        parameters = {name: ["sugar"], "details": True}
        answer = invoke(boto, {"inputs": INPUTS, "parameters": parameters})
        assert answer["generated_text"] == SAID.partition("sugar")[0]
        assert answer["details"]["finish_reason"] == "stop_sequence"
    body = {"inputs": INPUTS, "parameters": {"stop": "sugar"}, "stream": True}
    last = json.loads(invoke_stream(boto, body).splitlines()[-1])
    assert last["generated_text"] == SAID.partition("sugar")[0]
    assert last["details"]["finish_reason"] == "stop_sequence"


def test_several_inputs_get_several_answers(boto: Any) -> None:
    """In their order, each with its own prompt in front where the full text is asked for."""
    parameters = {"max_new_tokens": 3, "return_full_text": True}
    answers = invoke(boto, {"inputs": ["A", "B"], "parameters": parameters})
    assert answers == [{"generated_text": "A" + said(3)}, {"generated_text": "B" + said(3)}]


def test_openais_bodies_work_as_on_their_own_routes(boto: Any, server: ApiServer) -> None:
    """A prompt is a completion, messages are a chat, and their streams are server-sent events."""
    completion = {"prompt": INPUTS, "max_tokens": 4, "temperature": 0}
    chat = {"messages": [{"role": "user", "content": "hi"}], "max_tokens": 4}
    for path, body in (("/v1/completions", completion), ("/v1/chat/completions", chat)):
        own = server.post(path, body).json()
        assert invoke(boto, body)["choices"] == own["choices"]
        events = invoke_stream(boto, body | {"stream": True})
        assert events.startswith(b"data: {")
        assert events.endswith(b"data: [DONE]\n\n")


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({}, "inputs"),
        ({"inputs": 5}, "inputs"),
        ({"inputs": []}, "inputs"),
        ({"inputs": "x", "parameters": {"max_new_tokens": 0}}, "parameters.max_new_tokens"),
        ({"inputs": "x", "parameters": {"temperature": 9}}, "parameters.temperature"),
        ({"inputs": "x", "parameters": {"max_new_tokens": 999}}, "inputs"),
        ({"inputs": "x" * 500}, "inputs"),
        ({"inputs": "x", "parameters": {"num_beams": 4}}, "parameters.num_beams"),
        ({"inputs": "x", "parameters": {"temprature": 1}}, "parameters.temprature"),
        ({"inputs": "x", "parameters": {"stop": "a", "stop_sequences": "a"}}, "parameters.stop"),
        ({"inputs": ["x", "y"], "stream": True}, "stream"),
        ({"inputs": "x", "model": "nobody"}, "model"),
    ],
)
def test_what_cannot_be_done_is_named(server: ApiServer, body: Any, param: str) -> None:
    """An error with OpenAI's envelope; no field is ignored."""
    answer = server.post(PATH, body)
    assert answer.status_code in (400, 404)
    assert answer.json()["error"]["param"] == param


def test_boto3_sees_a_model_error(boto: Any) -> None:
    """SageMaker wraps our answer: status and message get through to the client."""
    with pytest.raises(ClientError) as caught:
        invoke(boto, {"inputs": "x", "parameters": {"max_new_tokens": 10**6}})
    assert caught.value.response["OriginalStatusCode"] == 400
    assert "maximum context length" in caught.value.response["OriginalMessage"]


def test_an_error_in_mid_stream_is_a_line_of_its_own() -> None:
    """What came stands; the last line says `error` in LMI's words and ours."""
    token_ids = encode(SAID)
    failing = FakeBackend(lambda request, index: token_ids, fault=OSError("x"), fault_step=4)
    with serving(failing) as server:
        body = {"inputs": INPUTS, "stream": True, "parameters": {"max_new_tokens": 9}}
        lines = [json.loads(line) for line in server.post(PATH, body).text.splitlines()]
    assert lines[-1]["details"]["finish_reason"] == "error"
    assert lines[-1]["error"]["type"] == "server_error"
    assert [line["token"]["id"] for line in lines[:-1]] == token_ids[: len(lines) - 1]


@pytest.mark.parametrize(
    ("parameters", "temperature"),
    [
        ({}, 0),
        ({"temperature": 0.7}, 0.7),
        ({"top_p": 0.9}, 1),
        ({"do_sample": True}, 1),
        ({"do_sample": False, "temperature": 0.7}, 0),
        ({"repetition_penalty": 1.2}, 0),
    ],
)
async def test_sampling_is_what_lmi_would_do(
    parameters: dict[str, Any], temperature: float
) -> None:
    """Greedy, unless a sampling parameter or `do_sample` asks for more."""
    backend = StillBackend()
    async with app_client(make_state(backend)) as client:
        await client.post(PATH, json={"inputs": "ab", "parameters": parameters})
    (request,) = backend.requests
    assert request.params.temperature == temperature
    assert request.prompt_token_ids == tuple(tiny_tokenizer().encode("ab"))


async def test_ping_is_readiness() -> None:
    """200 for a loaded model, 503 while it loads; no key is needed."""
    async with app_client(make_state(api_key=("secret",))) as client:
        assert (await client.get("/ping")).status_code == 200
    async with app_client(make_state(is_loaded=False)) as client:
        assert (await client.get("/ping")).status_code == 503
        assert (await client.post(PATH, json={"inputs": "x"})).status_code == 503


@pytest.mark.parametrize("fields", [InvocationRequest, InvocationParameters])
def test_every_field_is_documented(fields: Any) -> None:
    """docs/sagemaker.md has them all."""
    text = Path("docs/sagemaker.md").read_text(encoding="utf-8")
    assert [name for name in fields.model_fields if f"`{name}`" not in text] == []
