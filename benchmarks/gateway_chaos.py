"""Streams through gateways while everything around them dies, hangs, moves and comes back.

    make bench NAME=gateway_chaos                                     ten minutes, 200 streams
    make bench NAME=gateway_chaos ARGS="--minutes 1 --streams 50"     a look

Two engines with the fake loader and two with the demo model, found through the EndpointSlices of a
Kubernetes API server (a scripted one, over TLS), behind two gateways that count keys in a Redis.
Engines are killed, frozen, drained, replaced, added, and given each other's addresses; gateways are
rolled; Redis restarts; watches are cut, events lost, and the API server disappears for a minute.
Each model has a whole engine at any time, so every request can be served, and each has one right
answer: a failure that a client sees, or a wrong byte, fails the run.

Prints a table; the exit code is 0 where everything was right. Needs Linux (mount namespaces),
openssl and redis-server.
"""

from __future__ import annotations

import argparse
import asyncio
import random
import statistics
import sys
import tempfile
from collections import Counter
from pathlib import Path

import uvloop

from benchmarks.chaos.actors import Actor
from benchmarks.chaos.clients import Ask, Clients, Seen, ask_once, pool
from benchmarks.chaos.scene import API_KEYS, Scene
from benchmarks.chaos.trouble import Trouble
from benchmarks.load.machine import conditions

_NUM_ASKS = 60
_MAX_TOKENS = {"fake": 200, "demo": 60}
_DEMO_SHARE = 0.1
"""Of the clients: the demo model computes."""
_NOTED = ("continuations_total", "retries_total", "interrupted_streams_total")


class Chaos:
    """One run over a scene that has been set."""

    def __init__(self, scene: Scene, arguments: argparse.Namespace) -> None:
        self._scene = scene
        self._arguments = arguments
        self._trouble = Trouble(scene, arguments.seed, arguments.pause)
        self._trouble.on_roll.append(self._note_counters)
        self._counters: Counter[str] = Counter()
        self._memory: list[list[float]] = []

    async def run(self) -> bool:
        """Play it and print the table; True where nothing went wrong."""
        num_demo = max(1, round(self._arguments.streams * _DEMO_SHARE))
        num_streams = {"fake": self._arguments.streams - num_demo, "demo": num_demo}
        casts = {model: await self._clients(model) for model in num_streams}
        over = asyncio.Event()
        asking = [casts[model].ask(count, over) for model, count in num_streams.items()]
        playing = asyncio.gather(*asking, self._trouble.make(over), self._watch_memory(over))
        await asyncio.wait((playing,), timeout=self._arguments.minutes * 60)
        over.set()
        await playing
        leftovers = await self._leftovers()
        failures = [failure for cast in casts.values() for failure in cast.tally.failures]
        self._print(casts, len(failures), leftovers)
        complaints = [*failures, *self._trouble.complaints, *leftovers]
        for complaint in complaints[:20]:
            print(complaint, file=sys.stderr)
        return not complaints

    async def _clients(self, model: str) -> Clients:
        asks = pool(model, _NUM_ASKS, _MAX_TOKENS[model], self._arguments.seed)
        right = [(ask, await self._right_answer(ask)) for ask in asks]
        return Clients(self._scene.client, self._choose_url, right, API_KEYS)

    async def _right_answer(self, ask: Ask) -> Seen:
        """From an engine of the same model that is left in peace."""
        return await ask_once(self._scene.client, self._scene.references[ask.model].url, ask)

    def _choose_url(self) -> str:
        """As a Service does: gateways that are leaving get nothing new."""
        return random.choice([one for one in self._scene.gateways if one.is_wanted]).url

    # -- what is seen of the gateways -----------------------------------------------------------

    async def _watch_memory(self, over: asyncio.Event) -> None:
        while not over.is_set():
            self._memory.append([one.rss_mb for one in self._scene.gateways if one.is_running])
            await asyncio.sleep(1)

    async def _note_counters(self, gateway: Actor) -> None:
        found = await self._scene.metrics(gateway)
        for name in _NOTED:
            self._counters[name] += int(found[name])

    async def _leftovers(self) -> list[str]:
        """What is in flight or waits although all is over; whose limits are not shared again."""
        await asyncio.sleep(3)
        found: list[str] = []
        for one in self._scene.gateways:
            metrics = await self._scene.metrics(one)
            await self._note_counters(one)
            left = metrics["requests_in_flight"] + metrics["endpoint_requests_in_flight"]
            if left or metrics["queue_size"]:
                found.append(f"{one.name} still has {left:g} in flight")
            if not metrics["limits_shared"]:
                found.append(f"{one.name} has not found Redis again")
        return found

    def _print(self, casts: dict[str, Clients], num_failures: int, leftovers: list[str]) -> None:
        tallies = {model: cast.tally for model, cast in casts.items()}
        right = (f"{tally.num_right[model]} of {model}" for model, tally in tallies.items())
        first = [one for tally in tallies.values() for one in tally.first_chunk_seconds]
        gaps = [one for tally in tallies.values() for one in tally.longest_gap_seconds]
        highest = [max(row) for row in self._memory if row]
        quarter = max(1, len(highest) // 4)
        done = self._trouble.done.most_common()
        rows = {
            "minutes, streams at a time": f"{self._arguments.minutes:g}, {self._arguments.streams}",
            "what was done": ", ".join(f"{number} × {name}" for name, number in done),
            "requests with the right answer": ", ".join(right),
            "chunks": sum(tally.num_chunks for tally in tallies.values()),
            "failures that clients saw": num_failures,
            "streams that went on elsewhere": self._counters["continuations_total"],
            "attempts after the first": self._counters["retries_total"],
            "first chunk, p50 and p99": _percentiles(first),
            "longest gap of a stream, p50 and p99": _percentiles(gaps),
            "gateway memory, first and last quarter": f"{statistics.mean(highest[:quarter]):.0f} "
            f"and {statistics.mean(highest[-quarter:]):.0f} MB",
            "nothing left in flight, limits shared": "no" if leftovers else "yes",
        }
        print("| what | figure |\n|---|---|")
        for name, value in rows.items():
            print(f"| {name} | {value} |")


def _percentiles(values: list[float]) -> str:
    if len(values) < 2:
        return "none"
    cuts = statistics.quantiles(values, n=100)
    return f"{cuts[49] * 1000:.0f} and {cuts[98] * 1000:.0f} ms"


async def main() -> int:
    """Set the scene and run; the exit code."""
    arguments = _parser().parse_args()
    print(conditions(), end="\n\n")
    folder = Path(tempfile.mkdtemp(prefix="gateway-chaos-"))
    print(f"logs are in {folder}", file=sys.stderr)
    async with Scene(folder, arguments.tokens_per_second).perform() as scene:
        return 0 if await Chaos(scene, arguments).run() else 1


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--minutes", type=float, default=10)
    parser.add_argument("--streams", type=int, default=200)
    parser.add_argument("--pause", type=float, default=3, help="seconds between deeds, on average")
    parser.add_argument("--tokens-per-second", type=float, default=30)
    parser.add_argument("--seed", type=int, default=1)
    return parser


if __name__ == "__main__":
    sys.exit(uvloop.run(main()))
