"""From requests to replicas: a real server, a real Prometheus, the adapter's queries, the HPA."""

from __future__ import annotations

import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest

from tests.helpers.manifests.autoscaler import Autoscaler
from tests.helpers.manifests.rendering import K8S, Object, load_all
from tests.helpers.prometheus_process import PrometheusProcess
from tests.helpers.server_process import ServerProcess, wait_until
from tests.manifests.test_metrics import adapter_rules, filled_in

NAMESPACE = "text-generation-webui"
WINDOW = "10s"
"""Instead of the rules' two minutes, so that the test is over in seconds."""


@pytest.fixture(name="slow_server", scope="module")
def _slow_server() -> Iterator[ServerProcess]:
    """One request at a time, a second or so each: the others wait."""
    with ServerProcess("--max-num-seqs", "1", options={"tokens_per_second": 20}) as server:
        yield server.wait_until_ready()


@pytest.fixture(name="prometheus", scope="module")
def _prometheus(
    slow_server: ServerProcess, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[PrometheusProcess]:
    targets = {"engine-0": slow_server.url.removeprefix("http://")}
    folder = tmp_path_factory.mktemp("prometheus")
    with PrometheusProcess(folder, targets, NAMESPACE) as prometheus:
        yield prometheus


def test_load_scales_up_and_rest_scales_down(
    slow_server: ServerProcess, prometheus: PrometheusProcess
) -> None:
    """Requests per second and waiting requests both ask for more under load, and for less after."""
    by_requests = Autoscaler.of(autoscaler("hpa-requests"), replicas=1)
    by_waiting = Autoscaler.of(autoscaler("hpa-waiting"), replicas=1)
    assert (by_requests.target, by_waiting.target) == (0.5, 10)

    def per_second() -> dict[str, float]:
        return prometheus.query(adapter_query("tgwui_requests_per_second"))

    def waiting() -> dict[str, float]:
        return prometheus.query(adapter_query("tgwui_num_requests_waiting"))

    wait_until(lambda: waiting() == {"engine-0": 0.0})
    with ThreadPoolExecutor(40) as clients:
        answers = [
            clients.submit(slow_server.complete, f"Question {n}", max_tokens=6) for n in range(40)
        ]
        # Forty within moments: far over half a request per second, far over ten in the queue.
        wait_until(lambda: by_waiting.wanted(waiting()) >= 3)
        wait_until(lambda: bool(per_second()) and by_requests.wanted(per_second()) >= 5)
        slow_server.get("/health/ready")
        assert {answer.result().status_code for answer in answers} == {200}

    wait_until(lambda: by_waiting.wanted(waiting()) == by_waiting.spec["minReplicas"])
    wait_until(lambda: by_requests.wanted(per_second()) == by_requests.spec["minReplicas"])


def test_probes_and_scrapes_ask_for_nothing(
    slow_server: ServerProcess, prometheus: PrometheusProcess
) -> None:
    """However often the server is probed, the rate stays where the requests leave it."""
    query = adapter_query("tgwui_requests_per_second")
    wait_until(lambda: prometheus.query(query) == {"engine-0": 0.0})

    until = time.monotonic() + 3
    while time.monotonic() < until:
        slow_server.get("/health/ready")
        slow_server.get("/metrics")

    assert prometheus.query(query) == {"engine-0": 0.0}


@pytest.mark.parametrize("component", ["hpa-requests", "hpa-waiting"])
def test_up_at_once_and_down_after_the_window(component: str) -> None:
    """Up by double or by four in fifteen seconds; down by one a minute, after 300 s."""
    one = Autoscaler.of(autoscaler(component), replicas=2)

    def load(times: float) -> dict[str, float]:
        """Of so many pods' worth, spread over the pods that are there."""
        pods = range(one.replicas)
        return {f"engine-{n}": times * one.target / len(pods) for n in pods}

    assert [one.look(now, load(9)) for now in (0, 15, 30)] == [6, 9, 9]
    calm = [(now, one.look(now, load(1))) for now in range(45, 800, 15)]

    first = next(now for now, replicas in calm if replicas < 9)
    assert 300 < first - 30 <= 330
    steps = [calm[n][1] - calm[n - 1][1] for n in range(1, len(calm))]
    assert min(steps) == -1
    assert calm[-1][1] >= one.spec["minReplicas"]


def adapter_query(name: str) -> str:
    """The adapter's query of this metric for our pods, over a shorter window."""
    (rule,) = (rule for rule in adapter_rules() if rule["name"]["as"] == name)
    query = filled_in(rule, f'namespace="{NAMESPACE}",pod=~"engine-.*"')
    return query.replace("[2m]", f"[{WINDOW}]")


def autoscaler(component: str) -> Object:
    """The HorizontalPodAutoscaler of a component."""
    (one,) = load_all((K8S / "components" / component / "autoscaler.yaml").read_text())
    return one
