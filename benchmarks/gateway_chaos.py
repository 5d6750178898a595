"""Streams through gateways while their engines die, hang, drain and come back.

    python -m benchmarks.gateway_chaos                  ten minutes, 200 streams at a time
    python -m benchmarks.gateway_chaos --minutes 1 --streams 50

Four engines (the fake loader, so that every request has one right answer) behind two gateways.
Every few seconds something happens to one engine: killed, its engine process killed, frozen,
drained, taken out, put back; and now and then a gateway is rolled. At least two engines are whole
at any time, so every request can be served: a failure that a client sees, or a wrong byte, fails
the run.

Prints a table; the exit code is 0 where everything was right.
"""

from __future__ import annotations

import argparse
import asyncio
import random
import re
import statistics
import sys
from collections import Counter

import uvloop

from benchmarks.chaos.actors import Actor, engine, fetch, gateway, scratch
from benchmarks.chaos.clients import Ask, Seen, Tally, ask_once, keep_asking, pool
from tgwui_k8s.gateway.http_client import HttpClient

_NUM_ASKS = 60
_LEAST_WHOLE = 2
_METRIC = re.compile(r"^tgwui_gateway_(\w+?)(?:\{[^}]*\})? ([-+.0-9e]+)$", re.MULTILINE)


class Chaos:
    """One run."""

    def __init__(self, arguments: argparse.Namespace) -> None:
        self._arguments = arguments
        self._random = random.Random(arguments.seed)
        folder = scratch()
        print(f"logs are in {folder}", file=sys.stderr)
        self._endpoint_file = folder / "endpoints"
        speed = arguments.tokens_per_second
        self._engines = [engine(f"engine-{number}", speed, folder) for number in range(4)]
        self._reference = engine("reference", 0, folder)
        self._gateways = [
            gateway(f"gateway-{number}", self._endpoint_file, folder) for number in range(2)
        ]
        self._listed = set(self._engines)
        self._busy: set[Actor] = set()
        self._client = HttpClient()
        self._deeds: Counter[str] = Counter()
        self._memory: list[list[float]] = []
        self._counters: Counter[str] = Counter()
        self.tally = Tally()

    async def run(self) -> bool:
        """True where nothing went wrong."""
        actors = (*self._engines, self._reference, *self._gateways)
        try:
            self._write_endpoints()
            await asyncio.gather(*(actor.start(self._client) for actor in actors))
            asks = pool(_NUM_ASKS, self._arguments.seed)
            right = await self._right_answers(asks)
            await self._until_gateways_know_all()
            return await self._play(asks, right)
        finally:
            self._client.close()
            for actor in actors:
                actor.stop()

    async def _play(self, asks: list[Ask], right: list[Seen]) -> bool:
        over = asyncio.Event()
        clients = [
            asyncio.ensure_future(
                keep_asking(self._client, self._choose_url, asks, right, self.tally, over)
            )
            for _ in range(self._arguments.streams)
        ]
        chaos = asyncio.ensure_future(self._make_trouble(over))
        watch = asyncio.ensure_future(self._watch_memory(over))
        await asyncio.sleep(self._arguments.minutes * 60)
        over.set()
        await asyncio.gather(*clients)
        await asyncio.gather(chaos, watch)
        is_quiet = await self._is_quiet()
        self._print(is_quiet)
        return not self.tally.failures and is_quiet

    # -- trouble ------------------------------------------------------------------------------

    async def _make_trouble(self, over: asyncio.Event) -> None:
        deeds = {
            "killed": self._killed,
            "engine process killed": self._engine_killed,
            "frozen": self._frozen,
            "drained": self._drained,
            "taken out": self._taken_out,
        }
        running: set[asyncio.Future[None]] = set()
        next_roll = asyncio.get_running_loop().time() + 20
        while not over.is_set():
            await asyncio.sleep(self._random.uniform(0.5, 1.5) * self._arguments.pause)
            free = [one for one in self._engines if one not in self._busy]
            if len(free) > _LEAST_WHOLE:
                name = self._random.choice(list(deeds))
                self._deeds[name] += 1
                running.add(asyncio.ensure_future(self._do(deeds[name], self._random.choice(free))))
            if asyncio.get_running_loop().time() >= next_roll:
                next_roll += 30
                self._deeds["gateway rolled"] += 1
                running.add(asyncio.ensure_future(self._roll(self._random.choice(self._gateways))))
            running = {one for one in running if not one.done() or one.result()}
        await asyncio.gather(*running)

    async def _do(self, deed, victim: Actor) -> None:  # type: ignore[no-untyped-def]
        self._busy.add(victim)
        try:
            await deed(victim)
            # Gateways find out within a poll or two; until then it does not count as whole.
            await asyncio.sleep(3)
        finally:
            self._busy.discard(victim)

    async def _killed(self, victim: Actor) -> None:
        victim.kill()
        await asyncio.sleep(self._random.uniform(0, 3))
        await victim.start(self._client)

    async def _engine_killed(self, victim: Actor) -> None:
        victim.kill_engine()
        await asyncio.sleep(2)
        victim.kill()
        await victim.start(self._client)

    async def _frozen(self, victim: Actor) -> None:
        victim.freeze()
        await asyncio.sleep(self._random.uniform(1, 12))
        victim.thaw()

    async def _drained(self, victim: Actor) -> None:
        code = await victim.drain()
        if code != 0:
            self.tally.failures.append(f"{victim.name} left a drain with {code}")
        await victim.start(self._client)

    async def _taken_out(self, victim: Actor) -> None:
        self._listed.discard(victim)
        self._write_endpoints()
        await asyncio.sleep(4)
        self._listed.add(victim)
        self._write_endpoints()

    async def _roll(self, victim: Actor) -> None:
        if not victim.is_wanted or sum(one.is_wanted for one in self._gateways) < 2:
            return
        victim.is_wanted = False
        await self._note_counters(victim)
        code = await victim.drain()
        if code != 0:
            self.tally.failures.append(f"{victim.name} left a drain with {code}")
        await victim.start(self._client)

    def _write_endpoints(self) -> None:
        fresh = self._endpoint_file.with_suffix(".new")
        fresh.write_text("".join(f"{one.url}  # {one.name}\n" for one in self._listed))
        fresh.replace(self._endpoint_file)

    def _choose_url(self) -> str:
        """As a Service does: gateways that are leaving get nothing new."""
        return random.choice([one for one in self._gateways if one.is_wanted]).url

    # -- what is right, what is left ----------------------------------------------------------

    async def _right_answers(self, asks: list[Ask]) -> list[Seen]:
        return [await ask_once(self._client, self._reference.url, ask) for ask in asks]

    async def _until_gateways_know_all(self) -> None:
        for one in self._gateways:
            while (  # noqa: ASYNC110 - another process
                (await self._metrics(one))["endpoint_ready"] < len(self._engines)
            ):
                await asyncio.sleep(0.1)

    async def _watch_memory(self, over: asyncio.Event) -> None:
        while not over.is_set():
            self._memory.append([one.rss_mb for one in self._gateways if one.is_running])
            await asyncio.sleep(1)

    async def _metrics(self, one: Actor) -> Counter[str]:
        body = await fetch(self._client, one.url, "/metrics")
        sums: Counter[str] = Counter()
        for name, value in _METRIC.findall((body or b"").decode()):
            sums[name] += float(value)  # type: ignore[assignment]
        return sums

    async def _note_counters(self, one: Actor) -> None:
        found = await self._metrics(one)
        for name in ("continuations_total", "retries_total", "interrupted_streams_total"):
            self._counters[name] += int(found[name])

    async def _is_quiet(self) -> bool:
        """Nothing is in flight, nothing waits."""
        await asyncio.sleep(1)
        quiet = True
        for one in self._gateways:
            found = await self._metrics(one)
            await self._note_counters(one)
            left = found["requests_in_flight"] + found["endpoint_requests_in_flight"]
            quiet = quiet and left == 0 and found["queue_size"] == 0
        return quiet

    def _print(self, is_quiet: bool) -> None:
        tally = self.tally
        highest = [max(row) for row in self._memory if row]
        quarter = max(1, len(highest) // 4)
        rows = {
            "minutes, streams at a time": f"{self._arguments.minutes:g}, {self._arguments.streams}",
            "what was done": ", ".join(f"{n} × {name}" for name, n in self._deeds.items()),
            "requests with the right answer": tally.num_right,
            "chunks": tally.num_chunks,
            "failures that clients saw": len(tally.failures),
            "streams that went on elsewhere": self._counters["continuations_total"],
            "attempts after the first": self._counters["retries_total"],
            "first chunk, p50 and p99": _percentiles(tally.first_chunk_seconds),
            "longest gap of a stream, p50 and p99": _percentiles(tally.longest_gap_seconds),
            "gateway memory, first and last quarter": f"{statistics.mean(highest[:quarter]):.0f} "
            f"and {statistics.mean(highest[-quarter:]):.0f} MB",
            "all gauges back at zero": "yes" if is_quiet else "no",
        }
        print("| what | figure |\n|---|---|")
        for name, value in rows.items():
            print(f"| {name} | {value} |")
        for failure in tally.failures[:10]:
            print(f"failure: {failure}", file=sys.stderr)


def _percentiles(values: list[float]) -> str:
    if len(values) < 2:
        return "none"
    cuts = statistics.quantiles(values, n=100)
    return f"{cuts[49] * 1000:.0f} and {cuts[98] * 1000:.0f} ms"


def main() -> int:
    """Parse, run, print."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--minutes", type=float, default=10)
    parser.add_argument("--streams", type=int, default=200)
    parser.add_argument("--pause", type=float, default=3, help="seconds between deeds, on average")
    parser.add_argument("--tokens-per-second", type=float, default=30)
    parser.add_argument("--seed", type=int, default=1)
    arguments = parser.parse_args()
    return 0 if uvloop.run(Chaos(arguments).run()) else 1


if __name__ == "__main__":
    sys.exit(main())
