"""Metrics, from the program to the autoscaler: names, expressions, alerts and their runbooks."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.helpers.manifests.pods import matches
from tests.helpers.manifests.promises import (
    asked_metrics,
    exposed_names,
    expressions_of,
    unknown_metrics,
)
from tests.helpers.manifests.rendering import K8S, ROOT, Object, load_all, of_kind, title
from tests.helpers.server_process import ServerProcess
from tests.manifests.conftest import Tool

HERE = Path(__file__).parent
ADAPTER = K8S / "cluster/values/prometheus-adapter.yaml"

Renders = dict[str, list[Object]]


@pytest.fixture(name="known", scope="module")
def _known(server: ServerProcess, gateway: ServerProcess) -> set[str]:
    """Every name on `/metrics` of a running server and of a running gateway."""
    assert server.complete(max_tokens=2).status_code == 200
    return exposed_names(server.get("/metrics").text) | exposed_names(gateway.get("/metrics").text)


@pytest.fixture(name="expressions", scope="module")
def _expressions(renders: Renders) -> dict[str, list[str]]:
    """All PromQL in the manifests, by where it stands; the adapter's with its blanks filled in."""
    found: dict[str, list[str]] = {}
    for objects in renders.values():
        found |= expressions_of(objects)
    found |= {rule["name"]["as"]: [filled_in(rule)] for rule in adapter_rules()}
    return found


def test_every_metric_is_exposed(expressions: dict[str, list[str]], known: set[str]) -> None:
    """Alerts, dashboard, KEDA and the adapter name what the running programs have."""
    assert len(expressions) > 20
    assert unknown_metrics(expressions, known) == []


def test_autoscalers_ask_for_what_the_adapter_makes(renders: Renders) -> None:
    """A HorizontalPodAutoscaler's metric is the name of one of the adapter's rules."""
    made = {rule["name"]["as"] for rule in adapter_rules()}
    asked = {
        name
        for objects in renders.values()
        for names in asked_metrics(objects).values()
        for name in names
    }

    assert asked == made


def test_somebody_scrapes_what_autoscalers_look_at(renders: Renders) -> None:
    """A PodMonitor, of the same render or of components/monitoring, selects the target's pods."""
    ours = load_all((K8S / "components/monitoring/pod-monitors.yaml").read_text())
    unseen = {
        f"{name}: {title(pod)}"
        for name, objects in renders.items()
        for pod in _scaled_by_pods_metrics(objects)
        if not any(
            matches(monitor["spec"]["selector"], pod["spec"]["template"]["metadata"]["labels"])
            for monitor in of_kind([*ours, *objects], "PodMonitor")
        )
    }

    assert unseen == set()


def test_only_generation_scales(server: ServerProcess) -> None:
    """Probes and scrapes do not count as requests; a completion counts once."""

    def count() -> float:
        text = server.get("/metrics").text
        return sum(
            map(float, re.findall(r"^tgwui_generation_requests_total{.*} (\S+)$", text, re.M))
        )

    before = count()
    for path in ("/health/ready", "/health/live", "/metrics", "/v1/models"):
        server.get(path)
    assert count() == before

    server.complete(max_tokens=1)
    assert count() == before + 1


def test_prometheus_takes_every_expression(
    expressions: dict[str, list[str]], tool: Tool, tmp_path: Path
) -> None:
    """promtool parses all of them, as rules."""
    rules = [
        {"record": f"expression:{number}", "expr": expression}
        for number, expression in enumerate(e for several in expressions.values() for e in several)
    ]
    path = tmp_path / "rules.yaml"
    path.write_text(yaml.safe_dump({"groups": [{"name": "all", "rules": rules}]}))

    done = tool("promtool", "check", "rules", path)

    assert done.returncode == 0, done.stdout + done.stderr
    assert f"{len(rules)} rules found" in done.stdout


def test_alerts_fire_when_they_should_and_only_then(tool: Tool, tmp_path: Path) -> None:
    """promtool's unit tests of every alert, from series to the words that go out."""
    write_alerts(tmp_path / "alerts.yaml")
    (tmp_path / "alerts.test.yaml").write_text((HERE / "alerts.test.yaml").read_text())

    done = tool("promtool", "test", "rules", tmp_path / "alerts.test.yaml")

    assert done.returncode == 0, done.stdout + done.stderr


def test_every_alert_is_tested_and_has_its_runbook() -> None:
    """Names in the rule, in promtool's tests and in docs/operations.md are the same."""
    alerts = {rule["alert"]: rule for rule in alert_rules()}
    tests = yaml.safe_load((HERE / "alerts.test.yaml").read_text())["tests"]
    fired = {
        case["alertname"]
        for test in tests
        for case in test["alert_rule_test"]
        if case.get("exp_alerts")
    }
    silent = {
        case["alertname"]
        for test in tests
        for case in test["alert_rule_test"]
        if not case.get("exp_alerts")
    }
    operations = (ROOT / "docs/operations.md").read_text()
    runbooks = set(re.findall(r"^### (Tgwui\w+)$", operations, re.MULTILINE))

    assert fired == set(alerts)
    assert silent == set(alerts)
    assert runbooks == set(alerts)
    for name, rule in alerts.items():
        assert rule["annotations"]["runbook"] == f"docs/operations.md#{name.lower()}"


def test_the_log_collectors_take_our_lines_apart(server: ServerProcess) -> None:
    """Alloy's and Promtail's fields are ones that the server's lines have; the time is one too."""
    server.complete(max_tokens=1)
    fields = {field for line in server.log for field in line}
    folder = K8S / "components/logging"
    alloy = (folder / "values-alloy.yaml").read_text()
    promtail = yaml.safe_load((folder / "values-promtail.yaml").read_text())
    stages = promtail["config"]["snippets"]["pipelineStages"][1]["match"]["stages"]
    taken = re.findall(r'^\s+\w+\s+= "(\w+)",$', alloy, re.MULTILINE)

    # A trace has an id where the client sent one.
    assert set(taken) == set(stages[0]["json"]["expressions"].values())
    assert set(taken) - {"trace_id"} <= fields
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d+Z", server.log[-1]["ts"])


def alert_rules() -> list[dict[str, Any]]:
    """The rules of components/monitoring."""
    (rule,) = of_kind(
        load_all((K8S / "components/monitoring/alerts.yaml").read_text()), "PrometheusRule"
    )
    return [rule for group in rule["spec"]["groups"] for rule in group["rules"]]


def write_alerts(path: Path) -> None:
    """As a rule file of Prometheus."""
    path.write_text(yaml.safe_dump({"groups": [{"name": "alerts", "rules": alert_rules()}]}))


def adapter_rules() -> Sequence[Mapping[str, Any]]:
    """prometheus-adapter's, from its Helm values."""
    rules: Sequence[Mapping[str, Any]] = yaml.safe_load(ADAPTER.read_text())["rules"]["custom"]
    return rules


def filled_in(rule: Mapping[str, Any], matchers: str = "", group_by: str = "pod") -> str:
    """The adapter's query as it reaches Prometheus."""
    found = re.match(r'^(?:{__name__="([^"]+)",|(\w+){)', rule["seriesQuery"])
    assert found, rule["seriesQuery"]
    query: str = rule["metricsQuery"]
    return (
        query.replace("<<.Series>>", found[1] or found[2])
        .replace("<<.LabelMatchers>>", matchers)
        .replace("<<.GroupBy>>", group_by)
    )


def _scaled_by_pods_metrics(objects: Sequence[Object]) -> list[Object]:
    """The Deployments whose autoscaler asks the adapter."""
    targets = {
        one["spec"]["scaleTargetRef"]["name"]
        for one in of_kind(objects, "HorizontalPodAutoscaler")
        if title(one) in asked_metrics(objects)
    }
    return [one for one in of_kind(objects, "Deployment") if one["metadata"]["name"] in targets]
