"""Who takes part in a run: engines of two models, gateways, their cluster, and a Redis."""

from __future__ import annotations

import asyncio
import itertools
import json
import re
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Literal

from benchmarks.chaos.actors import TGWUI, Actor, fetch, free_port
from benchmarks.chaos.cluster import NAMESPACE, PORT_NAME, SELECTOR, Cluster
from tests.helpers.redis_server import RedisServer
from tgwui_k8s.gateway.http_client import HttpClient

Model = Literal["fake", "demo"]

NUM_ENGINES_PER_MODEL = 2
NUM_GATEWAYS = 2
API_KEYS = ("of-team-a", "of-team-b")

_KNOWN_SECONDS = 300.0
_METRIC = re.compile(r"^tgwui_gateway_(\w+?)(?:\{[^}]*\})? ([-+.0-9e]+)$", re.MULTILINE)


class Engine(Actor):
    """A pod. Its address may have been another pod's, and may be another's again."""

    def __init__(
        self, model: Model, uid: str, host: str, port: int, speed: float, log_dir: Path
    ) -> None:
        self.model = model
        self.uid = uid
        where = ("--host", host, "--port", str(port), "--no-webui", "--drain-timeout", "3")
        command = [*TGWUI, "serve", *where, "--max-num-seqs", "256", "--model", model]
        if model == "fake":
            command += ["--loader", "fake", "--loader-option", f"tokens_per_second={speed}"]
        else:
            command += ["--dtype", "float32", "--num-threads", "1"]
        super().__init__(uid, host, port, command, log_dir)


class Scene:
    """Made in a running event loop."""

    def __init__(self, folder: Path, tokens_per_second: float) -> None:
        self.client = HttpClient()
        self.engines: list[Engine] = []
        """Those that the cluster has, whether they live or not."""
        self._folder = folder
        self._speed = tokens_per_second
        self._port = free_port()
        self._numbers = itertools.count(1)
        self.cluster = Cluster(folder, self._port)
        self.redis = RedisServer(folder)
        self.references = {model: self._engine(model, speed=0) for model in ("fake", "demo")}
        self.gateways: list[Actor] = []
        self._everybody: list[Actor] = [*self.references.values()]

    @asynccontextmanager
    async def perform(self) -> AsyncIterator[Scene]:
        """All are ready, and the gateways know all engines, until the context ends."""
        self.redis.start()
        try:
            async with self.cluster.serve():
                await self._enter()
                yield self
        finally:
            self.client.close()
            for one in self._everybody:
                one.stop()
            self.redis.stop()

    async def _enter(self) -> None:
        self.gateways = [self._gateway(number) for number in range(NUM_GATEWAYS)]
        self._everybody += self.gateways
        engines = [
            self.new_engine(model)
            for model in ("fake", "demo")
            for _ in range(NUM_ENGINES_PER_MODEL)
        ]
        first = (*self.references.values(), *engines, *self.gateways)
        await asyncio.gather(*(one.start(self.client) for one in first))
        await self.cluster.change(new=[(one.uid, one.host) for one in engines])
        self.engines = engines
        for one in engines:
            await self.until_known(one)

    def new_engine(self, model: Model, host: str | None = None) -> Engine:
        """A pod that nobody knows yet, at its own address or at one that was another's."""
        engine = self._engine(model, host, self._speed)
        self._everybody.append(engine)
        return engine

    def _engine(self, model: Model, host: str | None = None, speed: float = 0) -> Engine:
        number = next(self._numbers)
        host = host or f"127.1.{number // 250}.{number % 250 + 1}"
        return Engine(model, f"{model}-{number}", host, self._port, speed, self._folder)

    def _gateway(self, number: int) -> Actor:
        keys = [
            {
                "name": key,
                "key": key,
                "requests_per_minute": 10**6,
                "max_concurrent_requests": 10**4,
            }
            for key in API_KEYS
        ]
        key_file = self._folder / "keys.json"
        key_file.write_text(json.dumps({"keys": keys}))
        port = free_port()
        flags = {
            "--gateway-port": str(port),
            "--endpoint-selector": SELECTOR,
            "--endpoint-namespace": NAMESPACE,
            "--endpoint-port-name": PORT_NAME,
            "--endpoint-silent-seconds": "5",
            "--drain-timeout": "120",
            "--api-key-file": str(key_file),
        }
        command = [*TGWUI, "gateway", *(word for pair in flags.items() for word in pair)]
        environment = {**self.cluster.environment, "TGWUI_REDIS_URL": self.redis.url}
        return Actor(
            f"gateway-{number}",
            "127.0.0.1",
            port,
            self.cluster.in_pod(command),
            self._folder,
            environment,
        )

    async def until_known(self, engine: Engine) -> None:
        """Return when every gateway that gets requests would send some to `engine`."""
        deadline = asyncio.get_running_loop().time() + _KNOWN_SECONDS
        known = re.compile(
            rb'^tgwui_gateway_endpoint_ready\{endpoint="engine-%b"\} 1' % engine.uid.encode(),
            re.MULTILINE,
        )
        for one in self.gateways:
            while one.is_wanted:
                body = await fetch(self.client, one.url, "/metrics")
                if body is not None and known.search(body):
                    break
                assert asyncio.get_running_loop().time() < deadline, f"nobody finds {engine.uid}"
                await asyncio.sleep(0.5)

    async def metrics(self, gateway: Actor) -> Counter[str]:
        """Each of its metrics, summed over labels."""
        body = await fetch(self.client, gateway.url, "/metrics")
        sums: Counter[str] = Counter()
        for name, value in _METRIC.findall((body or b"").decode()):
            sums[name] += float(value)  # type: ignore[assignment]
        return sums
