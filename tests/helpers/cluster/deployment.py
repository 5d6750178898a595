"""A Deployment with its Service: rolling updates, evictions, scaling, by the manifests' numbers."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from itertools import count

from tests.helpers.cluster.network import Network
from tests.helpers.cluster.numbers import Numbers
from tests.helpers.cluster.pod import Pod

_PATIENCE_SECONDS = 150.0


@dataclass(frozen=True)
class Departure:
    """How one pod left."""

    pod: str
    num_unfinished: int
    """Streams that were under way when SIGTERM came."""
    exit_code: int | None
    was_killed: bool


class Deployment:
    """The controllers' part. A context manager that leaves no process."""

    def __init__(
        self,
        network: Network,
        numbers: Numbers,
        flags: tuple[str, ...],
        num_open_streams: Callable[[str], int],
        *,
        num_cards: int | None = None,
    ) -> None:
        """`num_open_streams` of a pod's address; `num_cards`: pods that fit on the machines."""
        self._network = network
        self._numbers = numbers
        self._flags = flags
        self._num_open_streams = num_open_streams
        self._num_cards = num_cards
        self._names = count(1)
        self._changed = asyncio.Event()
        self._version = "v1"
        self._replicas = 0
        self._closed_nodes: set[str] = set()
        self._starting: set[asyncio.Future[None]] = set()
        self._leaving: set[asyncio.Task[None]] = set()
        self._errors: list[BaseException] = []
        self.pods: list[Pod] = []
        self.departures: list[Departure] = []
        self.endpoints: tuple[str, ...] = ()
        """What clients see: the ready pods of a moment ago."""

    async def __aenter__(self) -> Deployment:
        return self

    async def __aexit__(self, *exception: object) -> None:
        tasks = (*self._starting, *self._leaving)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await asyncio.gather(*(pod.kill() for pod in self.pods))

    # -- what an operator does ----------------------------------------------------------------

    async def scale(self, replicas: int) -> None:
        """`kubectl scale`; returns when all are available and the others gone."""
        self._replicas = replicas
        await self._settle()

    async def roll(self, version: str, numbers: Numbers | None = None) -> None:
        """`kubectl apply` of another version, perhaps with other numbers."""
        self._version = version
        if numbers is not None:
            self._numbers = numbers
        await self._settle()

    async def drain(self, node: str) -> None:
        """`kubectl drain`: evict one pod after the other, as the disruption budget allows."""
        self._closed_nodes.add(node)
        for pod in [pod for pod in self._staying() if pod.node == node]:
            await self._until(self._is_complete)
            self._remove(pod)
        await self._settle()

    # -- what the controllers do --------------------------------------------------------------

    async def _settle(self) -> None:
        """Act until what is there is what is wanted, and nobody is leaving any more."""

        def is_settled() -> bool:
            self._reconcile()
            new = [pod for pod in self._staying() if pod.version == self._version]
            return (
                len(new) == len(self._staying()) == self._replicas
                and all(pod.is_available for pod in new)
                and not self._leaving
            )

        await self._until(is_settled)

    def _is_complete(self) -> bool:
        """Nothing is missing: the disruption budget has one to give."""
        self._reconcile()
        return self._num_available() >= self._replicas

    def _reconcile(self) -> None:
        """One look: start and remove as far as surge and unavailability allow."""
        staying = self._staying()
        old = [pod for pod in staying if pod.version != self._version]
        new = [pod for pod in staying if pod.version == self._version]
        most = self._replicas + (self._numbers.max_surge if old else 0)
        for _ in range(min(self._replicas - len(new), most - len(staying))):
            if self._num_cards is None or len(self.pods) < self._num_cards:
                self._add()
        for pod in new[self._replicas :]:
            self._remove(pod)
        least = self._replicas - self._numbers.max_unavailable
        for pod in old:
            if not pod.is_available or self._num_available() > least:
                self._remove(pod)

    def _add(self) -> None:
        number = next(self._names)
        nodes = [node for node in ("node-a", "node-b") if node not in self._closed_nodes]
        pod = Pod(
            name=f"{self._version}-{number}",
            node=nodes[number % len(nodes)],
            version=self._version,
            namespace=self._network.add(),
            numbers=self._numbers,
            flags=self._flags,
            on_change=self._publish,
        )
        self.pods.append(pod)
        self._starting.add(task := asyncio.ensure_future(pod.start()))
        task.add_done_callback(self._starting.discard)

    def _remove(self, pod: Pod) -> None:
        pod.is_terminating = True
        task = asyncio.ensure_future(self._see_off(pod))
        self._leaving.add(task)
        task.add_done_callback(self._has_left)

    async def _see_off(self, pod: Pod) -> None:
        num_unfinished = 0

        def count_streams(leaving: Pod) -> None:
            nonlocal num_unfinished
            num_unfinished = self._num_open_streams(leaving.url)

        await pod.delete(count_streams)
        self.pods.remove(pod)
        self._network.remove(pod.namespace)
        self.departures.append(Departure(pod.name, num_unfinished, pod.exit_code, pod.was_killed))

    def _has_left(self, task: asyncio.Task[None]) -> None:
        self._leaving.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            self._errors.append(error)
        self._changed.set()

    def _staying(self) -> list[Pod]:
        return [pod for pod in self.pods if not pod.is_terminating]

    def _num_available(self) -> int:
        return sum(pod.is_available for pod in self._staying())

    def _publish(self) -> None:
        """Tell the clients who is ready; they hear it a while later."""
        ready = tuple(pod.url for pod in self._staying() if pod.is_ready)
        loop = asyncio.get_running_loop()
        loop.call_later(self._numbers.endpoint_lag, self._show, ready)
        self._changed.set()

    def _show(self, ready: tuple[str, ...]) -> None:
        self.endpoints = ready
        self._changed.set()

    async def _until(self, is_so: Callable[[], bool]) -> None:
        async def wait() -> None:
            while not is_so():
                if self._errors:
                    raise self._errors[0]
                assert not any(pod.has_died for pod in self.pods), "a server ended by itself"
                self._changed.clear()
                await self._changed.wait()

        try:
            await asyncio.wait_for(wait(), _PATIENCE_SECONDS)
        except asyncio.TimeoutError:
            raise AssertionError(f"after {_PATIENCE_SECONDS:g} s still {self.pods}") from None
