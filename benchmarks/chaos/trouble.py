"""Everything that goes wrong in a run, so that each model has a whole engine at any time.

Engines are in trouble one per model at a time, until every gateway knows them again. Beside that go
on their own: gateways are rolled, Redis restarts, watches are cut, the API server disappears.
"""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from collections.abc import Awaitable, Callable

from benchmarks.chaos.actors import Actor
from benchmarks.chaos.scene import Engine, Model, Scene

_PRE_STOP_SECONDS = 2.0
"""Between the end of new requests and SIGTERM, as a pod's preStop hook waits."""
_LOST_EVENTS = 0.1
"""Share of a slice's changes that no watch tells."""

_ROLL_SECONDS, _REDIS_SECONDS, _CUT_SECONDS, _OUTAGE_SECONDS = 30.0, 40.0, 45.0, 180.0
"""From one to the next."""

Deed = Callable[[Engine], Awaitable[None]]


class Trouble:
    """`make` makes it until told to stop; `done` counts it; `complaints` are what went wrong."""

    def __init__(self, scene: Scene, seed: int, pause: float) -> None:
        """`pause`: seconds between deeds at engines, on average."""
        self._scene = scene
        self._random = random.Random(seed)
        self._pause = pause
        self._troubled: set[Model] = set()
        self.done: Counter[str] = Counter()
        self.complaints: list[str] = []
        self.on_roll: list[Callable[[Actor], Awaitable[None]]] = []
        """Called with a gateway whose life is about to end."""

    async def make(self, over: asyncio.Event) -> None:
        """Until `over`; what has begun is finished."""
        await asyncio.gather(
            self._trouble_engines(over),
            self._every(_ROLL_SECONDS, self._roll_gateway, over),
            self._every(_REDIS_SECONDS, self._restart_redis, over),
            self._every(_CUT_SECONDS, self._cut_watches, over),
            self._every(_OUTAGE_SECONDS, self._lose_api_server, over),
        )

    # -- engines ------------------------------------------------------------------------------

    async def _trouble_engines(self, over: asyncio.Event) -> None:
        in_place: dict[str, Deed] = {
            "killed": self._killed,
            "engine process killed": self._engine_killed,
            "frozen": self._frozen,
        }
        by_cluster: dict[str, Deed] = {
            "drained and replaced": self._replaced,
            "taken out and put back": self._taken_out,
            "added and drained away": self._added,
            "address taken by the other model": self._swapped,
        }
        running: set[asyncio.Task[None]] = set()
        while not await _is_over_within(over, self._random.uniform(0.5, 1.5) * self._pause):
            deeds = {**in_place, **(by_cluster if self._scene.cluster.is_there else {})}
            name = min(deeds, key=lambda name: (self.done[name], self._random.random()))
            wanted: set[Model] = {self._random.choice(["fake", "demo"])}
            if name == "address taken by the other model":
                wanted = {"fake", "demo"}
            if wanted & self._troubled:
                continue
            models = sorted(wanted)
            victim = self._random.choice([e for e in self._scene.engines if e.model == models[0]])
            self.done[name] += 1
            running.add(asyncio.ensure_future(self._do(deeds[name], victim, wanted)))
            running = {task for task in running if not task.done() or task.result()}
        await asyncio.gather(*running)

    async def _do(self, deed: Deed, victim: Engine, models: set[Model]) -> None:
        self._troubled |= models
        await deed(victim)
        for engine in self._scene.engines:
            if engine.model in models:
                await self._scene.until_known(engine)
        self._troubled -= models

    async def _killed(self, victim: Engine) -> None:
        victim.kill()
        await asyncio.sleep(self._random.uniform(0, 3))
        await victim.start(self._scene.client)

    async def _engine_killed(self, victim: Engine) -> None:
        victim.kill_engine()
        await asyncio.sleep(2)
        victim.kill()
        await victim.start(self._scene.client)

    async def _frozen(self, victim: Engine) -> None:
        victim.freeze()
        await asyncio.sleep(self._random.uniform(1, 12))
        victim.thaw()

    async def _replaced(self, victim: Engine) -> None:
        await self._drain_away(victim)
        host = self._random.choice([victim.host, None])
        await self._add(self._scene.new_engine(victim.model, host))

    async def _taken_out(self, victim: Engine) -> None:
        await self._change(gone=[victim])
        await asyncio.sleep(4)
        await self._change(new=[victim])

    async def _added(self, neighbour: Engine) -> None:
        engine = self._scene.new_engine(neighbour.model)
        await self._add(engine)
        await asyncio.sleep(self._random.uniform(3, 10))
        await self._drain_away(engine)

    async def _swapped(self, victim: Engine) -> None:
        """Two pods die, and each address is the other model's before anybody is told."""
        engines = self._scene.engines
        other = self._random.choice([e for e in engines if e.model != victim.model])
        victim.kill()
        other.kill()
        new = [
            self._scene.new_engine(victim.model, other.host),
            self._scene.new_engine(other.model, victim.host),
        ]
        await asyncio.gather(*(engine.start(self._scene.client) for engine in new))
        await asyncio.sleep(self._random.uniform(0, 3))
        await self._change(new=new, gone=[victim, other])

    async def _add(self, engine: Engine) -> None:
        await engine.start(self._scene.client)
        await self._change(new=[engine])

    async def _drain_away(self, engine: Engine) -> None:
        await self._scene.cluster.change(leaving=[engine.uid])
        await asyncio.sleep(_PRE_STOP_SECONDS)
        self._check_exit(engine, await engine.drain())
        await self._change(gone=[engine])

    async def _change(
        self, *, new: list[Engine] | None = None, gone: list[Engine] | None = None
    ) -> None:
        new, gone = new or [], gone or []
        await self._scene.cluster.change(
            new=[(engine.uid, engine.host) for engine in new],
            gone=[engine.uid for engine in gone],
            is_told=self._random.random() >= _LOST_EVENTS,
        )
        self._scene.engines = [*(e for e in self._scene.engines if e not in gone), *new]

    # -- everybody else -----------------------------------------------------------------------

    async def _every(
        self, seconds: float, deed: Callable[[], Awaitable[None]], over: asyncio.Event
    ) -> None:
        while not await _is_over_within(over, seconds):
            await deed()

    async def _roll_gateway(self) -> None:
        self.done["gateway rolled"] += 1
        victim = self._random.choice(self._scene.gateways)
        victim.is_wanted = False
        await asyncio.sleep(_PRE_STOP_SECONDS)
        for listener in self.on_roll:
            await listener(victim)
        self._check_exit(victim, await victim.drain())
        await victim.start(self._scene.client)

    async def _restart_redis(self) -> None:
        self.done["Redis restarted"] += 1
        self._scene.redis.stop()
        await asyncio.sleep(self._random.uniform(0, 5))
        await asyncio.get_running_loop().run_in_executor(None, self._scene.redis.start)

    async def _cut_watches(self) -> None:
        self.done["watches cut"] += 1
        self._scene.cluster.cut_watches()

    async def _lose_api_server(self) -> None:
        self.done["API server away for a minute"] += 1
        await self._scene.cluster.disappear(60)

    def _check_exit(self, actor: Actor, code: int) -> None:
        if code != 0:
            self.complaints.append(f"{actor.name} left a drain with {code}")


async def _is_over_within(over: asyncio.Event, seconds: float) -> bool:
    try:
        await asyncio.wait_for(over.wait(), seconds)
    except asyncio.TimeoutError:
        return False
    return True
