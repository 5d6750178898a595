"""The demo model behind real servers: the oracles of the whole path, from HTTP to logits and back.

In float32 through Transformers and in bfloat16 through the native decoder, a request gives the
same tokens alone, beside 63 others, with a cache too small for all, and resumed anywhere.
"""

from __future__ import annotations

import asyncio
import json
import random
from collections.abc import Iterator
from typing import Any

import openai
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from tests.helpers.server_process import ServerProcess
from tests.helpers.versions import in_dtype, needs_transformers
from tgwui_k8s.demo import model_path
from tgwui_k8s.runtime.native_library import why_unavailable

RECIPE = "This is a cake recipe:\n\n1."
PROMPTS = (
    RECIPE,
    "Which port does the API listen on?",
    "Once upon a time",
    "How do models get on EFS?",
    "This is a soup recipe:\n\n1. Peel the potatoes and",
)
# Room for a few sequences of full length only, so that 64 at once wait and preempt one another.
SMALL = ("--max-num-seqs", "16", "--kv-cache-memory", "40MiB", "--max-model-len", "512")


@pytest.fixture(
    name="server",
    scope="module",
    params=[
        pytest.param("float32", marks=needs_transformers("5.17")),
        pytest.param(
            "native",
            marks=pytest.mark.skipif(
                why_unavailable() is not None, reason=f"no native decoder: {why_unavailable()}"
            ),
        ),
    ],
)
def _server(request: pytest.FixtureRequest) -> Iterator[ServerProcess]:
    loader = {
        "float32": ("--loader", "Transformers", "--dtype", "float32", "--num-threads", "1"),
        "native": ("--loader", "Native"),
    }[request.param]
    with ServerProcess("--model", "demo", *loader, *SMALL) as server:
        yield server.wait_until_ready()


def connect(server: ServerProcess) -> openai.AsyncOpenAI:
    return openai.AsyncOpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0)


async def stream_text(client: openai.AsyncOpenAI, **fields: Any) -> str:
    """The whole text of a streamed completion."""
    extra = {name: fields.pop(name) for name in tuple(fields) if name in EXTENSIONS}
    stream = await client.completions.create(model="demo", stream=True, extra_body=extra, **fields)
    return "".join([chunk.choices[0].text async for chunk in stream if chunk.choices])


EXTENSIONS = {"min_p", "top_k", "repetition_penalty", "dry_multiplier", "xtc_probability"}


def mixed_requests(count: int) -> list[dict[str, Any]]:
    """Requests with sampling parameters of every kind; seeded."""
    source = random.Random(4)
    requests = []
    for seed in range(count):
        fields: dict[str, Any] = {
            "prompt": source.choice(PROMPTS) + " " * source.randint(0, 1),
            "max_tokens": source.randint(8, 32),
            "temperature": source.choice([0, 0, 0.7, 1.0, 1.3]),
            "seed": seed,
        }
        for name, value in (
            ("top_p", 0.9),
            ("min_p", 0.05),
            ("top_k", 20),
            ("repetition_penalty", 1.2),
            ("frequency_penalty", 0.5),
            ("presence_penalty", 0.4),
            ("dry_multiplier", 0.8),
            ("xtc_probability", 0.5),
            ("stop", ["\n3.", "oven"]),
            ("logit_bias", {"20": -5}),
        ):
            if source.random() < 0.3:
                fields[name] = value
        requests.append(fields)
    return requests


async def test_64_streams_at_once_give_what_each_gives_alone(server: ServerProcess) -> None:
    """Mixed sampling parameters, a full queue and preemption change no character."""
    client = connect(server)
    requests = mixed_requests(64)
    together = await asyncio.gather(*(stream_text(client, **fields) for fields in requests))
    sample = random.Random(1).sample(range(64), 12)
    alone = [await stream_text(client, **requests[index]) for index in sample]
    assert [together[index] for index in sample] == alone
    again = await asyncio.gather(*(stream_text(client, **fields) for fields in reversed(requests)))
    assert again[::-1] == together
    assert len(set(together)) > 30, "the requests are too alike to show anything"


async def test_the_recipe_is_english_and_the_same_twice(server: ServerProcess) -> None:
    """The blueprint's request, answered twice with the same text."""
    client = connect(server)
    fields = {"prompt": RECIPE, "max_tokens": 200, "temperature": 1, "top_p": 0.9, "seed": 10}
    first = await stream_text(client, **fields)
    assert await stream_text(client, **fields) == first
    assert "\n2." in first
    assert any(word in first for word in ("oven", "bake", "flour", "butter", "sugar"))


@needs_transformers("5")
def test_greedy_text_is_that_of_transformers() -> None:
    """In float32 our server and `generate()` give the same tokens."""
    tokenizer = AutoTokenizer.from_pretrained(model_path())
    model = AutoModelForCausalLM.from_pretrained(model_path(), **in_dtype(torch.float32))
    flags = ("--model", "demo", "--loader", "Transformers", "--dtype", "float32")
    with ServerProcess(*flags) as server:
        server.wait_until_ready()
        for prompt in PROMPTS:
            inputs = tokenizer(prompt, return_tensors="pt")
            output = model.generate(**inputs, max_new_tokens=60, do_sample=False)[0]
            expected = output[inputs["input_ids"].shape[1] :].tolist()
            body = server.complete(prompt, max_tokens=60, return_token_ids=True).json()
            choice = body["choices"][0]
            assert choice["prompt_token_ids"] == inputs["input_ids"][0].tolist()
            assert choice["token_ids"] == expected


@pytest.mark.parametrize("stop", [None, ["\n4.", "sugar and"]])
def test_a_stream_resumed_at_any_chunk_goes_on_exactly(
    server: ServerProcess, stop: list[str] | None
) -> None:
    """Cut after any chunk, the rest comes from `resume_token_ids`; nothing twice, nothing lost."""
    fields: dict[str, Any] = {
        "temperature": 1.0,
        "seed": 3,
        "max_tokens": 40,
        "repetition_penalty": 1.1,
        "return_token_ids": True,
        **({"stop": stop} if stop else {}),
    }
    whole = read_stream(server, RECIPE, **fields)
    text = "".join(chunk["text"] for chunk in whole)
    for cut in range(0, len(whole), 3):
        before = whole[:cut]
        token_ids = [token for chunk in before for token in chunk["token_ids"]]
        length = sum(len(chunk["text"]) for chunk in before)
        rest = read_stream(
            server, RECIPE, resume_token_ids=[token_ids], resume_text_lengths=[length], **fields
        )
        assert text[:length] + "".join(chunk["text"] for chunk in rest) == text
        assert rest[-1]["finish_reason"] == whole[-1]["finish_reason"]


def read_stream(server: ServerProcess, prompt: str, **fields: Any) -> list[dict[str, Any]]:
    """The choices of a streamed completion's chunks."""

    with server.stream(prompt, **fields) as events:
        bodies = [json.loads(event) for event in events if event != "[DONE]"]
    return [body["choices"][0] for body in bodies if body["choices"]]
