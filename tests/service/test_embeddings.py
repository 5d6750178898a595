"""A server with an embedding model: through the official client, and what it refuses."""

from __future__ import annotations

import asyncio
import base64
import os
import signal
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import numpy as np
import openai
import pytest
from sentence_transformers import SentenceTransformer

from tests.helpers.api_server import make_backend, serving
from tests.helpers.app_client import app_client
from tests.helpers.engine_processes import until
from tests.helpers.sentence_model import SIZE, TEXTS, make_sentence_model
from tests.helpers.server_process import ServerProcess
from tests.helpers.versions import needs_transformers
from tgwui_k8s.api.tokenizer import Tokenizer
from tgwui_k8s.contract import EmbeddingRequest, LoadRequest
from tgwui_k8s.engine.client import EngineClient
from tgwui_k8s.engine.messages import EngineSettings
from tgwui_k8s.errors import DrainingError, EngineUnavailableError, OverloadedError

pytestmark = needs_transformers("5.17")


@pytest.fixture(name="folder", scope="module")
def _folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models") / "sentences"
    return make_sentence_model(folder, matryoshka_dimensions=[SIZE, 16])


@pytest.fixture(name="server", scope="module")
def _server(folder: Path) -> Iterator[ServerProcess]:
    flags = ("--model", str(folder), "--loader", "auto", "--num-threads", "1")
    with ServerProcess(*flags) as server:
        yield server.wait_until_ready()


@pytest.fixture(name="expected", scope="module")
def _expected(folder: Path) -> np.ndarray:
    oracle = SentenceTransformer(str(folder), device="cpu", local_files_only=True)
    return np.asarray(oracle.encode(list(TEXTS)))


def connect(server: ServerProcess) -> openai.OpenAI:
    """The official client; it asks for base64 unless told otherwise."""
    return openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0)


def test_vectors_come_as_floats_and_as_base64(server: ServerProcess, expected: np.ndarray) -> None:
    """Both are the model's, in order, with the usage."""
    client = connect(server)
    for encoding in ({}, {"encoding_format": "float"}):
        answer = client.embeddings.create(model="sentences", input=list(TEXTS), **encoding)  # type: ignore[call-overload]

        vectors = np.array([one.embedding for one in answer.data])
        np.testing.assert_allclose(vectors, expected, atol=1e-5)
        assert [one.index for one in answer.data] == [0, 1, 2, 3]
        assert answer.usage.prompt_tokens == answer.usage.total_tokens > 20
    raw = client.embeddings.create(model="sentences", input="a", encoding_format="base64")
    assert len(base64.b64decode(raw.data[0].embedding)) == 4 * SIZE  # type: ignore[arg-type]


def test_one_text_and_token_ids_are_inputs(
    server: ServerProcess, folder: Path, expected: np.ndarray
) -> None:
    """A single text, its tokens, and a list of such lists."""
    client = connect(server)
    token_ids = Tokenizer.load(folder).encode(TEXTS[0])
    for given in (TEXTS[0], token_ids, [token_ids]):
        answer = client.embeddings.create(model="sentences", input=given)

        np.testing.assert_allclose(answer.data[0].embedding, expected[0], atol=1e-5)


def test_vectors_are_cut_where_the_model_was_trained_for_it(
    server: ServerProcess, expected: np.ndarray
) -> None:
    """A shorter unit vector; other lengths are refused by name."""
    client = connect(server)
    answer = client.embeddings.create(model="sentences", input=TEXTS[1], dimensions=16)

    short = expected[1][:16]
    np.testing.assert_allclose(answer.data[0].embedding, short / np.linalg.norm(short), atol=1e-5)
    with pytest.raises(openai.BadRequestError) as caught:
        client.embeddings.create(model="sentences", input="a", dimensions=17)
    assert (caught.value.param, caught.value.code) == ("dimensions", "unsupported_parameter")


async def test_requests_share_batches(server: ServerProcess, expected: np.ndarray) -> None:
    """Many at once get what each gets alone."""
    client = openai.AsyncOpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0)
    async with client:
        answers = await asyncio.gather(
            *(
                client.embeddings.create(model="sentences", input=list(TEXTS[: 1 + number % 4]))
                for number in range(24)
            )
        )

    for answer in answers:
        vectors = [one.embedding for one in answer.data]
        np.testing.assert_allclose(vectors, expected[: len(vectors)], atol=1e-5)


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({"input": "x " * 400}, "input"),
        ({"input": []}, "input"),
        ({"input": [5000]}, "input"),
        ({"input": "a", "encoding_format": "int8"}, "encoding_format"),
        ({"input": "a", "colour": "red"}, "colour"),
        ({}, "input"),
    ],
)
def test_mistakes_are_named(server: ServerProcess, body: dict[str, object], param: str) -> None:
    """A 400 with the field."""
    answer = server.http.post(f"{server.url}/v1/embeddings", json=body)

    assert answer.status_code == 400
    assert answer.json()["error"]["param"] == param


@pytest.mark.parametrize("path", ["/v1/completions", "/v1/messages", "/v1/responses"])
def test_it_generates_nothing(server: ServerProcess, path: str) -> None:
    """A generation route says what the server serves instead."""
    bodies = {
        "/v1/completions": {"prompt": "Hi."},
        "/v1/messages": {
            "model": "sentences",
            "max_tokens": 5,
            "messages": [{"role": "user", "content": "Hi."}],
        },
        "/v1/responses": {"input": "Hi."},
    }
    answer = server.http.post(f"{server.url}{path}", json=bodies[path])

    assert answer.status_code == 400, answer.text
    message = answer.json()["error"]["message"]
    assert "/v1/embeddings" in message or "no chat template" in message


def test_it_says_what_it_serves(server: ServerProcess) -> None:
    """The model's facts name its capabilities."""
    capabilities = server.get("/v1/internal/model/info").json()["capabilities"]

    assert capabilities["embeddings"] is True
    assert capabilities["generation"] is False


async def test_a_model_that_generates_embeds_nothing() -> None:
    """Asking it for vectors is a 400 that says so."""
    with serving(make_backend()) as chatting:
        async with app_client(chatting.state) as client:
            answer = await client.post("/v1/embeddings", json={"input": "Hi."})

    assert answer.status_code == 400
    assert answer.json()["error"]["code"] == "unsupported_parameter"


@pytest.fixture(name="engine")
async def _engine(folder: Path) -> AsyncIterator[EngineClient]:
    client = EngineClient()
    request = LoadRequest(model_path=str(folder), loader="Embeddings", num_threads=1)
    await client.load(request, EngineSettings(max_num_seqs=2, max_waiting_requests=2))
    yield client
    await client.close()


def long_request(name: str) -> EmbeddingRequest:
    """A request that takes many steps."""
    return EmbeddingRequest(request_id=name, token_id_lists=((7,) * 60,) * 4000)


async def test_a_dead_engine_is_told_to_who_waits_for_vectors(engine: EngineClient) -> None:
    """Nobody waits for a process that is gone; new requests learn it, too."""
    waiting = asyncio.create_task(engine.embed(long_request("a")))
    await asyncio.sleep(0)
    assert engine.pid is not None
    os.kill(engine.pid, signal.SIGKILL)

    with pytest.raises(EngineUnavailableError):
        await waiting
    with pytest.raises(EngineUnavailableError):
        await engine.embed(long_request("b"))


async def test_requests_end_early(engine: EngineClient) -> None:
    """Cancelled, beyond the queue, or at a drain; what is not wanted is computed no further."""
    cancelled = asyncio.create_task(engine.embed(long_request("0")))
    await asyncio.sleep(0)
    cancelled.cancel()
    short = EmbeddingRequest(request_id="1", token_id_lists=((7, 8),))
    assert len(await engine.embed(short)) == 4 * SIZE
    await until(lambda: engine.stats.num_requests_running + engine.stats.num_requests_waiting == 0)

    waiting = [asyncio.create_task(engine.embed(long_request(name))) for name in "abc"]
    done, others = await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
    assert [type(task.exception()) for task in done] == [OverloadedError]
    engine.abort_all(DrainingError("going"))
    for task in others:
        with pytest.raises(DrainingError):
            await task
