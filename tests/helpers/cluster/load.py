"""Clients that stream without a pause, each answer compared with what it must be."""

from __future__ import annotations

import asyncio
import json
import random
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import aiohttp

MODEL = "fake"


@dataclass(frozen=True)
class Question:
    """A request whose answer is known."""

    prompt: str
    max_tokens: int

    def body(self, *, stream: bool) -> dict[str, object]:
        """Greedy, so that every engine answers the same."""
        return {
            "prompt": self.prompt,
            "max_tokens": self.max_tokens,
            "temperature": 0,
            "stream": stream,
        }


@dataclass(frozen=True)
class Answer:
    """The bytes of the text, and how it ended."""

    text: bytes
    finish_reason: str | None


@dataclass
class Load:
    """What the clients saw. `endpoints` tells whom a client may ask, at that moment."""

    endpoints: Callable[[], Sequence[str]]
    answers: Mapping[Question, Answer]
    open_streams: Counter[str] = field(default_factory=Counter)
    """Streams under way, by the server's address."""
    num_whole: int = 0
    lost: list[str] = field(default_factory=list)
    """What went wrong, in words."""

    async def run(self, num_clients: int, until: asyncio.Event) -> None:
        """Stream until told to stop, and then to the end of what has begun."""
        # A connection for each request, as kube-proxy balances connections.
        connector = aiohttp.TCPConnector(limit=0, force_close=True)
        timeout = aiohttp.ClientTimeout(total=None, connect=10)
        async with aiohttp.ClientSession(connector=connector, timeout=timeout) as session:
            await asyncio.gather(
                *(self._client(session, random.Random(seed), until) for seed in range(num_clients))
            )

    async def _client(
        self, session: aiohttp.ClientSession, chance: random.Random, until: asyncio.Event
    ) -> None:
        questions = list(self.answers)
        while not until.is_set():
            # Not all at once: at every moment somebody asks, and streams are at every point.
            await asyncio.sleep(chance.random())
            question = chance.choice(questions)
            seen = self.endpoints()
            if not seen:
                self.lost.append("nobody was there to ask")
                await asyncio.sleep(0.1)
                continue
            await self._ask(session, chance.choice(seen), question)

    async def _ask(self, session: aiohttp.ClientSession, url: str, question: Question) -> None:
        self.open_streams[url] += 1
        try:
            answer = await stream(session, url, question)
        except (aiohttp.ClientError, OSError, asyncio.TimeoutError, BrokenStreamError) as error:
            self.lost.append(f"{url}: {type(error).__name__}: {error}")
        else:
            if answer == self.answers[question]:
                self.num_whole += 1
            else:
                self.lost.append(f"{url}: {answer} is not {self.answers[question]}")
        finally:
            self.open_streams[url] -= 1


class BrokenStreamError(Exception):
    """An error in the stream, or no end to it."""


async def stream(session: aiohttp.ClientSession, url: str, question: Question) -> Answer:
    """One streamed answer. Raises `BrokenStreamError` where it is not whole."""
    text, finish_reason, is_done = "", None, False
    async with session.post(f"{url}/v1/completions", json=question.body(stream=True)) as response:
        if response.status != 200:
            raise BrokenStreamError(f"{response.status} {await response.text()}")
        async for line in response.content:
            data = line.strip().removeprefix(b"data: ")
            if data == b"[DONE]":
                is_done = True
            elif line.startswith(b"data: "):
                event = json.loads(data)
                if "error" in event:
                    raise BrokenStreamError(str(event["error"]))
                choice = event["choices"][0]
                text += choice["text"]
                finish_reason = choice["finish_reason"] or finish_reason
    if not is_done:
        raise BrokenStreamError(f"ended without [DONE] after {text!r}")
    return Answer(text.encode(), finish_reason)


async def ask_for_answers(url: str, questions: Sequence[Question]) -> dict[Question, Answer]:
    """The whole answers, not streamed, from a server that nobody stops."""
    async with aiohttp.ClientSession() as session:

        async def ask(question: Question) -> Answer:
            path = f"{url}/v1/completions"
            async with session.post(path, json=question.body(stream=False)) as response:
                choice = (await response.json())["choices"][0]
                return Answer(choice["text"].encode(), choice["finish_reason"])

        answers = await asyncio.gather(*map(ask, questions))
    return dict(zip(questions, answers, strict=True))
