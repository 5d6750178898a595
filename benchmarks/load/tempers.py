"""Clients of every temper, for a soak: most listen to the end, some leave, some ask what is wrong.

Each asks once and returns None where it was answered as it should be, else a complaint in few
words that are equal for equal causes. What a request is made of is drawn anew every time.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, replace
from random import Random
from typing import Any

import msgspec

from benchmarks.load.client import Target, stream
from benchmarks.load.http import TruncatedError, ask
from benchmarks.load.prompts import random_prompts

_SHARED_WORDS = 40
"""Beginning of most prompts: the prefix cache has something to find and to keep."""
_LONGEST_WORDS = 160
_MOST_TOKENS = 160
_WAIT_SECONDS = 600.0

_VARIANTS: tuple[dict[str, Any], ...] = (
    {},
    {"ignore_eos": True},
    {"temperature": 0.9, "top_p": 0.9, "seed": 7},
    {"temperature": 1.2, "min_p": 0.05, "repetition_penalty": 1.1},
    {"logprobs": 3},
    {"n": 2, "temperature": 1.0},
    {"stop": ["the", "and"]},
    {"prompt_lookup_num_tokens": 4},
)
_NONSENSE: tuple[tuple[str, bytes, int], ...] = (
    ("/v1/completions", b"{no json", 400),
    ("/v1/completions", b'{"prompt": "x", "max_tokens": -1}', 400),
    ("/v1/completions", b'{"prompt": "x", "temperature": "hot"}', 400),
    ("/v1/completions", b'{"prompt": "x", "model": "nobody"}', 404),
    ("/v1/chat/completions", b'{"messages": []}', 400),
    ("/v1/chat/completions", b'{"prompt": "x"}', 400),
    ("/v1/nowhere", b"{}", 404),
)


@dataclass(frozen=True)
class Scene:
    """Whom they ask, and from how many words on a prompt is certainly too long."""

    target: Target
    too_many_words: int


Temper = Callable[[Scene, Random], Awaitable[str | None]]


async def listen(scene: Scene, draw: Random) -> str | None:
    """A stream to its end."""
    recording = await stream(_vary(scene.target, draw), _prompt(draw))
    # Nothing is wrong with an answer that was stopped before its first token.
    return None if recording.error in (None, "empty answer") else f"stream: {recording.error}"


async def wait(scene: Scene, draw: Random) -> str | None:
    """An answer in one piece."""
    body = {"prompt": _prompt(draw), "max_tokens": draw.randint(1, _MOST_TOKENS)}
    body |= draw.choice(_VARIANTS)
    return await _expect(scene, "/v1/completions", msgspec.json.encode(body), 200)


async def leave(scene: Scene, draw: Random) -> str | None:
    """A stream that its client closes early: in the queue, in the prompt, or among the tokens."""
    with contextlib.suppress(asyncio.TimeoutError):
        asked = stream(_vary(scene.target, draw), _prompt(draw))
        recording = await asyncio.wait_for(asked, draw.expovariate(1.0))
        if recording.error not in (None, "empty answer"):
            return f"stream: {recording.error}"
    return None


async def ask_too_much(scene: Scene, draw: Random) -> str | None:
    """A prompt beyond the model's context."""
    (prompt,) = random_prompts(1, scene.too_many_words, draw.randrange(1000))
    body = msgspec.json.encode({"prompt": prompt, "stream": draw.random() < 0.5})
    return await _expect(scene, "/v1/completions", body, 400)


async def ask_nonsense(scene: Scene, draw: Random) -> str | None:
    """A body that no server can serve."""
    return await _expect(scene, *draw.choice(_NONSENSE))


async def stop_all(scene: Scene, draw: Random) -> str | None:
    """Every few seconds: the end of everything that runs, with the text it has."""
    await asyncio.sleep(draw.uniform(1.0, 9.0))
    return await _expect(scene, "/v1/internal/stop-generation", b"", 200)


async def _expect(scene: Scene, path: str, body: bytes, status: int) -> str | None:
    origin, headers = scene.target.origin, {"Content-Type": "application/json"}
    try:
        asked = ask(origin, origin.request("POST", path, headers, body))
        answered, _ = await asyncio.wait_for(asked, _WAIT_SECONDS)
    except (TruncatedError, OSError, asyncio.TimeoutError) as error:
        return f"{path}: {type(error).__name__}"
    return None if answered == status else f"{path}: HTTP {answered} instead of {status}"


def _vary(target: Target, draw: Random) -> Target:
    endpoint = draw.choice(("completions", "chat"))
    fields = dict(draw.choice(_VARIANTS))
    if endpoint == "chat" and "logprobs" in fields:
        fields = {"logprobs": True, "top_logprobs": 3}
    tokens = draw.randint(1, _MOST_TOKENS)
    return replace(target, endpoint=endpoint, max_tokens=tokens, fields=fields)


def _prompt(draw: Random) -> str:
    shared = draw.choice((0, _SHARED_WORDS))
    words = draw.randint(shared + 1, _LONGEST_WORDS)
    return random_prompts(1, words, seed=draw.randrange(50), num_shared_words=shared)[0]
