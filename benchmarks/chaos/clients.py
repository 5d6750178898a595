"""Clients that know what they should get: streams, checked to the last byte."""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import msgspec

from tgwui_k8s.gateway.event_stream import EventSplitter, data_of, is_comment
from tgwui_k8s.gateway.failures import ExchangeError
from tgwui_k8s.gateway.http_client import HttpClient, parse_origin, request_bytes

COMPLETIONS, CHAT = "/v1/completions", "/v1/chat/completions"

_WORDS = ["red", "blue", "stone", "river", "cake", "port", "model", "night", "engine", "pod"]


@dataclass(frozen=True)
class Ask:
    """A request of the pool."""

    path: str
    body: dict[str, Any]

    @property
    def model(self) -> str:
        """Who shall answer."""
        return str(self.body["model"])


@dataclass
class Seen:
    """What a client has at the end."""

    choices: dict[int, dict[str, Any]] = field(default_factory=dict)
    usage: Any = None
    is_done: bool = False


@dataclass
class Tally:
    """What all clients met."""

    num_right: Counter[str] = field(default_factory=Counter)
    """By model."""
    num_chunks: int = 0
    failures: list[str] = field(default_factory=list)
    first_chunk_seconds: list[float] = field(default_factory=list)
    longest_gap_seconds: list[float] = field(default_factory=list)


def pool(model: str, size: int, max_tokens: int, seed: int) -> list[Ask]:
    """Requests of all kinds, each with a seed of its own, so that there is one right answer.

    A model that computes adds up in another order when others are in its batch: what it samples may
    hang on the last bit, so it is asked for its likeliest tokens only, and for no logprobs.
    """
    draw = random.Random(seed)
    return [_ask(draw, model, number, max_tokens) for number in range(size)]


def _ask(draw: random.Random, model: str, number: int, max_tokens: int) -> Ask:
    text = " ".join(draw.choices(_WORDS, k=draw.randint(1, 30)))
    body: dict[str, Any] = {
        "model": model,
        "stream": draw.random() < 0.8,
        "seed": number,
        "temperature": draw.choice([0, 0.8, 1.5]) if model == "fake" else 0,
        "max_tokens": draw.randint(5, max_tokens),
        "n": draw.choice([1, 1, 1, 2]),
        "stop": draw.choice([[], [], ["th"], ["ee", "oo a"]]),
    }
    if body["stream"]:
        body["stream_options"] = {"include_usage": True}
    if draw.random() < 0.5:
        logprobs = draw.choice([None, None, 2]) if model == "fake" else None
        return Ask(COMPLETIONS, {**body, "prompt": text, "logprobs": logprobs})
    return Ask(CHAT, {**body, "messages": [{"role": "user", "content": text}]})


async def ask_once(
    client: HttpClient, url: str, ask: Ask, *, key: str = "", tally: Tally | None = None
) -> Seen:
    """One request to its end. Raises `ExchangeError`, or `AssertionError` for an error answer."""
    loop = asyncio.get_running_loop()
    origin = parse_origin(url)
    head = [(b"content-type", b"application/json"), (b"authorization", f"Bearer {key}".encode())]
    request = request_bytes("POST", ask.path, origin, head, msgspec.json.encode(ask.body))
    began = last = loop.time()
    longest_gap = 0.0
    exchange = await client.start(origin, request, connect_seconds=10, fresh=True)
    try:
        await exchange.head()
        if exchange.status != 200 or not ask.body["stream"]:
            body = await exchange.read_all(1 << 24)
            assert exchange.status == 200, body[:300].decode()
            seen = Seen(is_done=True)
            _note(seen, msgspec.json.decode(body))
            return seen
        seen, splitter = Seen(), EventSplitter()
        while data := await exchange.read():
            now = loop.time()
            for block in splitter.feed(data):
                if not is_comment(block):
                    _take(seen, data_of(block))
                    if tally is not None:
                        tally.num_chunks += 1
            if last == began and tally is not None:
                tally.first_chunk_seconds.append(now - began)
            elif last != began:
                longest_gap = max(longest_gap, now - last)
            last = now
        assert seen.is_done, "the stream ended without [DONE]"
        if tally is not None:
            tally.longest_gap_seconds.append(longest_gap)
        return seen
    finally:
        exchange.abort()


def _take(seen: Seen, data: bytes) -> None:
    assert not seen.is_done, "something came after [DONE]"
    if data == b"[DONE]":
        seen.is_done = True
        return
    chunk = msgspec.json.decode(data)
    assert "error" not in chunk, str(chunk)
    _note(seen, chunk)


def _note(seen: Seen, chunk: dict[str, Any]) -> None:
    if chunk.get("usage"):
        seen.usage = {key: chunk["usage"][key] for key in ("prompt_tokens", "completion_tokens")}
    for choice in chunk["choices"]:
        one = seen.choices.setdefault(choice["index"], {"text": "", "logprobs": [], "end": None})
        part = choice.get("delta") or choice.get("message") or {}
        one["text"] += choice.get("text") or part.get("content") or ""
        logprobs = choice.get("logprobs") or {}
        one["logprobs"] += logprobs.get("token_logprobs", [])
        one["end"] = choice["finish_reason"] or one["end"]


class Clients:
    """Many at a time, each with an API key, asking one request of its pool after the other."""

    def __init__(
        self,
        client: HttpClient,
        choose_url: Callable[[], str],
        right: Sequence[tuple[Ask, Seen]],
        keys: Sequence[str],
    ) -> None:
        """`right`: what may be asked, with the right answers."""
        self.tally = Tally()
        self._client = client
        self._choose_url = choose_url
        self._right = right
        self._keys = keys

    async def ask(self, count: int, is_over: asyncio.Event) -> None:
        """So many, until it is over and the last has its answer."""
        await asyncio.gather(
            *(self._keep_asking(self._keys[n % len(self._keys)], is_over) for n in range(count))
        )

    async def _keep_asking(self, key: str, is_over: asyncio.Event) -> None:
        tally = self.tally
        while not is_over.is_set():
            ask, right = random.choice(self._right)
            url = self._choose_url()
            try:
                seen = await ask_once(self._client, url, ask, key=key, tally=tally)
            except (ExchangeError, AssertionError) as error:
                told = f"{ask.model} at {url}: {type(error).__name__}: {error}"
                tally.failures.append(told[:400])
                await asyncio.sleep(0.1)
                continue
            if seen == right:
                tally.num_right[ask.model] += 1
            else:
                tally.failures.append(f"{url}: wrong: {ask} gave {seen}, not {right}")
