"""components/keda: who keeps an engine up, what wakes the first one, and who waits for it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.helpers.manifests.rendering import (
    K8S,
    RenderError,
    load_all,
    of_kind,
    render_together,
)
from tests.manifests.conftest import Tool

SECONDS_TO_A_NEW_ENGINE = 240
"""On a new machine: docs/kubernetes.md, "Cold start"."""

RUNNING = 'tgwui_num_requests_running{namespace="text-generation-webui", pod="engine-0"}'
WAITING = 'tgwui_num_requests_waiting{namespace="text-generation-webui", pod="engine-0"}'
ASKED = 'tgwui_generation_requests_total{namespace="text-generation-webui", pod="engine-0"}'
QUEUED = 'tgwui_gateway_queue_size{namespace="text-generation-webui", pod="proxy-0"}'

BUSY = {
    # Short answers: scrapes see none of them.
    "a request a minute": {RUNNING: "0x80", WAITING: "0x80", ASKED: "0x4 1x4 2x4 3x4 4x80"},
    "one long answer": {RUNNING: "1x80", WAITING: "0x80", ASKED: "1x80"},
    "a full engine": {RUNNING: "200x80", WAITING: "5x80", ASKED: "0+20x80"},
    "a request held at the gateway": {QUEUED: "1x80"},
}
QUIET = {
    "an engine that nobody asks": {RUNNING: "0x80", WAITING: "0x80", ASKED: "7x80"},
    "nothing there": {'up{job="other"}': "1x80"},
}


@pytest.fixture(name="triggers")
def _triggers() -> list[dict[str, Any]]:
    """What Prometheus is asked, by name, threshold and activation threshold."""
    (one,) = load_all((K8S / "components/keda/scaled-object.yaml").read_text())
    return [{"name": each["name"], **each["metadata"]} for each in one["spec"]["triggers"]]


@pytest.mark.parametrize("scene", [*BUSY, *QUIET])
def test_engines_stay_while_somebody_asks(
    scene: str, triggers: list[dict[str, Any]], tool: Tool, tmp_path: Path
) -> None:
    """An active trigger keeps them; when all are quiet for the cool-down, the last one goes."""
    series = (BUSY | QUIET)[scene]
    active = " + ".join(
        f"(({one['query']}) > bool {one.get('activationThreshold', 0)})" for one in triggers
    )

    assert_is(float(scene in BUSY), f"({active}) > bool 0", series, tool, tmp_path)


def test_being_there_asks_for_one_engine_only(
    triggers: list[dict[str, Any]], tool: Tool, tmp_path: Path
) -> None:
    """The trigger that keeps engines does not multiply them; the waiting ones do that."""
    (presence,) = (one for one in triggers if "waiting" not in one["name"])

    wanted = f"ceil(({presence['query']}) / {presence['threshold']})"
    assert_is(1.0, wanted, BUSY["a full engine"], tool, tmp_path)


def test_the_gateway_waits_for_the_first_engine(tmp_path: Path) -> None:
    """Longer than a new machine takes, and for the engines' model although none has served it."""
    objects = render_together(
        tmp_path / "k", "overlays/gpu", ["components/gateway", "components/keda"]
    )
    (deployment,) = (
        one
        for one in of_kind(objects, "Deployment")
        if one["metadata"]["name"] == "text-generation-webui-proxy"
    )
    (container,) = deployment["spec"]["template"]["spec"]["containers"]
    settings = {one["metadata"]["name"]: one["data"] for one in of_kind(objects, "ConfigMap")}
    own = settings[container["envFrom"][0]["configMapRef"]["name"]]
    variables = {one["name"]: one for one in container["env"]}
    source = variables["TGWUI_EXPECTED_MODEL"]["valueFrom"]["configMapKeyRef"]

    assert float(own["TGWUI_QUEUE_TIMEOUT"]) > SECONDS_TO_A_NEW_ENGINE
    assert settings[source["name"]][source["key"]] == "TheBloke_Llama-2-7B-Chat-AWQ"


def test_it_needs_the_gateway(tmp_path: Path) -> None:
    """Without one, nothing would hold the requests that wake an engine: kustomize refuses."""
    with pytest.raises(RenderError, match="text-generation-webui-proxy"):
        render_together(tmp_path / "k", "overlays/gpu", ["components/keda"])


def assert_is(
    value: float, expression: str, series: dict[str, str], tool: Tool, folder: Path
) -> None:
    """The expression's one value after four minutes of these series, as promtool computes it."""
    test = {
        "interval": "15s",
        "input_series": [{"series": name, "values": values} for name, values in series.items()],
        "promql_expr_test": [
            {
                "expr": expression,
                "eval_time": "4m",
                "exp_samples": [{"labels": "{}", "value": value}],
            }
        ],
    }
    path = folder / "keda.test.yaml"
    path.write_text(yaml.safe_dump({"evaluation_interval": "15s", "tests": [test]}))

    done = tool("promtool", "test", "rules", path)

    assert done.returncode == 0, done.stdout + done.stderr
