"""Roll-outs under continuous streams lose none, with the manifests' own numbers.

Servers are real processes with addresses of their own; the controllers are small copies of what
kubelet, Deployment and endpoints controllers do (tests/helpers/cluster). All times come from
the rendered manifests, ten times shorter; so do the streams: the longest take eight of the sixty
seconds that an answer may take.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from dataclasses import replace

import pytest

from tests.helpers.cluster.deployment import Deployment
from tests.helpers.cluster.load import Answer, Load, Question, ask_for_answers
from tests.helpers.cluster.network import Network, network
from tests.helpers.cluster.numbers import Numbers, numbers_of
from tests.helpers.manifests.rendering import K8S, render
from tests.helpers.server_process import ServerProcess

SCALE = 0.1
TOKENS_PER_SECOND = 5
POLL_SECONDS = 0.05
QUESTIONS = [Question(f"Story {n}: ", max_tokens=10 + 3 * (n % 11)) for n in range(33)]
"""Two to eight seconds long."""

FLAGS = ("--loader-option", f"tokens_per_second={TOKENS_PER_SECOND}")

pytestmark = pytest.mark.timeout(400)


@pytest.fixture(name="pod_network")
def _pod_network() -> Iterator[Network]:
    with network() as made:
        yield made


@pytest.fixture(name="answers", scope="module")
def _answers() -> dict[Question, Answer]:
    """What every question must be answered, from a server in peace."""
    with ServerProcess() as server:
        url = server.wait_until_ready().url
        return asyncio.run(ask_for_answers(url, QUESTIONS))


@asynccontextmanager
async def under_load(
    deployment: Deployment, load: Load, *, replicas: int, num_clients: int
) -> AsyncIterator[None]:
    """The Deployment is up and everybody streams from it; at the end all streams are ended."""
    await deployment.scale(replicas)
    await until(lambda: len(deployment.endpoints) == replicas)
    enough = asyncio.Event()
    streaming = asyncio.create_task(load.run(num_clients, enough))
    try:
        # Streams at every point of their way.
        await until(lambda: load.num_whole >= num_clients // 2 or bool(load.lost))
        yield
    finally:
        enough.set()
        await streaming


async def until(is_so: Callable[[], bool], seconds: float = 60.0) -> None:
    """Look again and again."""
    for _ in range(int(seconds / POLL_SECONDS)):
        if is_so():
            return
        await asyncio.sleep(POLL_SECONDS)
    raise TimeoutError


def make(
    pod_network: Network, numbers: Numbers, answers: dict[Question, Answer], **options: int
) -> tuple[Deployment, Load]:
    """A Deployment, and clients that see its endpoints."""
    load = Load(lambda: deployment.endpoints, answers)
    deployment = Deployment(
        pod_network, numbers, FLAGS, lambda url: load.open_streams[url], **options
    )
    return deployment, load


async def test_roll_outs_lose_no_stream(
    pod_network: Network, answers: dict[Question, Answer]
) -> None:
    """Rolling update, node drain, scale-down: over 500 streams, each whole and byte for byte right.

    At every SIGTERM streams were unfinished, and every server left by itself with exit code 0.
    """
    numbers = numbers_of(render(K8S / "overlays/cpu"), scale=SCALE)
    deployment, load = make(pod_network, numbers, answers)
    async with deployment, under_load(deployment, load, replicas=3, num_clients=100):
        await deployment.roll("v2")
        num_rolled = len(deployment.departures)
        await deployment.drain(deployment.pods[0].node)
        num_drained = len(deployment.departures) - num_rolled
        await deployment.scale(2)
        num_scaled = len(deployment.departures) - num_rolled - num_drained

    assert load.lost == []
    assert load.num_whole >= 500
    assert (num_rolled, num_scaled) == (3, 1)
    assert num_drained >= 1
    assert min(one.num_unfinished for one in deployment.departures) >= 1, deployment.departures
    assert {one.exit_code for one in deployment.departures} == {0}
    assert not any(one.was_killed for one in deployment.departures)


async def test_roll_out_without_spare_cards_loses_no_stream(
    pod_network: Network, answers: dict[Question, Answer]
) -> None:
    """The GPU overlay's numbers: an old pod has to give its card back before a new one starts."""
    numbers = numbers_of(render(K8S / "overlays/gpu"), scale=SCALE)
    assert (numbers.max_surge, numbers.max_unavailable) == (0, 1)
    deployment, load = make(pod_network, numbers, answers, num_cards=2)
    async with deployment, under_load(deployment, load, replicas=2, num_clients=40):
        await deployment.roll("v2")

    assert load.lost == []
    assert len(deployment.departures) == 2
    assert min(one.num_unfinished for one in deployment.departures) >= 1


@pytest.mark.parametrize(
    ("mistake", "words", "questions"),
    [
        # SIGTERM before everybody has heard that the pod leaves: somebody asks in that second.
        ({"pre_stop": 0.0}, "draining|Connect", QUESTIONS[:4]),
        # Killed with streams under way.
        ({"grace": 2.0}, "ended without|payload|Disconnected|reset", QUESTIONS),
        # Told to end them too soon.
        ({"drain_timeout": 0.5}, "shutting down", QUESTIONS),
    ],
    ids=["no preStop", "short grace", "short drain"],
)
async def test_wrong_numbers_lose_streams(
    mistake: dict[str, float],
    words: str,
    questions: list[Question],
    pod_network: Network,
    answers: dict[Question, Answer],
) -> None:
    """The same test with one number made wrong sees streams lost, for that number's reason."""
    right = numbers_of(render(K8S / "overlays/cpu"), scale=SCALE)
    numbers = replace(right, **mistake)  # type: ignore[arg-type]
    chosen = {question: answers[question] for question in questions}
    deployment, load = make(pod_network, numbers, chosen)
    async with deployment, under_load(deployment, load, replicas=2, num_clients=60):
        await deployment.scale(1)

    assert any(re.search(words, one) for one in load.lost), load.lost
