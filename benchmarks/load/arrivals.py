"""When requests are sent: at fixed times whatever the server does, or always so many at once."""

from __future__ import annotations

import asyncio
import itertools
import random
import time
from collections.abc import Awaitable, Callable, Iterator
from typing import TypeVar

_Result = TypeVar("_Result")


def poisson(rate: float, seed: int) -> Iterator[float]:
    """Seconds from the start at which independent clients would come, `rate` a second."""
    source = random.Random(seed)
    now = 0.0
    while True:
        now += source.expovariate(rate)
        yield now


def constant(rate: float) -> Iterator[float]:
    """Every `1 / rate` seconds, from 0 on."""
    return (number / rate for number in itertools.count())


async def open_loop(
    send: Callable[[int], Awaitable[_Result]], times: Iterator[float], number: int, seconds: float
) -> tuple[list[_Result], list[float]]:
    """Send request i at time i, at most `number` of them and none later than `seconds`.

    Returns the results and by how many seconds each was sent too late: a generator that is late
    measures itself.
    """
    started = time.perf_counter()
    tasks: list[asyncio.Future[_Result]] = []
    lateness: list[float] = []
    for index, due in enumerate(itertools.islice(times, number)):
        if due > seconds:
            break
        await asyncio.sleep(max(0.0, started + due - time.perf_counter()))
        lateness.append(max(0.0, time.perf_counter() - started - due))
        tasks.append(asyncio.ensure_future(send(index)))
    return list(await asyncio.gather(*tasks)), lateness


async def closed_loop(
    send: Callable[[int], Awaitable[_Result]], concurrency: int, number: int, seconds: float
) -> list[_Result]:
    """Keep `concurrency` requests under way until `number` were sent or `seconds` are over."""
    indices = iter(range(number))
    deadline = time.perf_counter() + seconds
    results: list[_Result] = []

    async def one_client() -> None:
        for index in indices:
            if time.perf_counter() >= deadline:
                return
            results.append(await send(index))

    await asyncio.gather(*(one_client() for _ in range(min(concurrency, number))))
    return results
