"""A mistake of each kind, made on purpose in a copy, is found by the check that is there for it."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.helpers.manifests.drain import drain_problems
from tests.helpers.manifests.hardening import (
    secrets_in_manifests,
    soft_pods,
    wide_roles,
    wrong_tolerations,
)
from tests.helpers.manifests.promises import (
    METRIC,
    expressions_of,
    unknown_metrics,
    unpinned_images,
    wrong_probe_paths,
    wrong_settings,
)
from tests.helpers.manifests.references import (
    competing_autoscalers,
    missing_objects,
    unmatched_selectors,
    wrong_ports,
)
from tests.helpers.manifests.rendering import Object, kustomizations, render_together
from tests.helpers.manifests.schemas import custom_resource_problems
from tests.manifests.conftest import Tool

Check = Callable[[Sequence[Object]], list[str]]

BALANCER = "service.beta.kubernetes.io~aws-load-balancer"

MISTAKES = [
    pytest.param(check, mistake, id=f"{check}: {name}")
    for check, mistakes in yaml.safe_load(
        (Path(__file__).parent / "mistakes.yaml").read_text()
    ).items()
    for name, mistake in mistakes.items()
]


@pytest.fixture(name="right", scope="module")
def _right(tmp_path_factory: pytest.TempPathFactory) -> list[Object]:
    """A render with nearly everything in it, and nothing wrong."""
    left_out = ("hpa-waiting", "keda", "kserve", "without-efs")
    components = [name for name in kustomizations("components") if not name.endswith(left_out)]
    return render_together(tmp_path_factory.mktemp("right") / "k", "overlays/gpu", components)


@pytest.fixture(name="checks", scope="module")
def _checks(right: list[Object]) -> dict[str, Check]:
    """By name. Paths and metrics are those of the right copy; other tests ask the programs."""
    paths = {"/health/live", "/health/ready", "/health/startup"}.__contains__
    names = " ".join(e for several in expressions_of(right).values() for e in several)
    known = set(METRIC.findall(names))
    plain: list[Check] = [
        *(competing_autoscalers, custom_resource_problems, drain_problems, missing_objects),
        *(secrets_in_manifests, soft_pods, unmatched_selectors, unpinned_images, wide_roles),
        *(wrong_ports, wrong_settings, wrong_tolerations),
    ]
    return {check.__name__: check for check in plain} | {
        "wrong_probe_paths": lambda objects: wrong_probe_paths(
            objects, {"serve": paths, "gateway": paths}
        ),
        "unknown_metrics": lambda objects: unknown_metrics(expressions_of(objects), known),
    }


def test_the_right_copy_is_right(right: list[Object], checks: dict[str, Check]) -> None:
    """None of the checks finds anything before a mistake is made, and each has one to find."""
    assert {name: check(right) for name, check in checks.items()} == {name: [] for name in checks}
    assert {parameter.values[0] for parameter in MISTAKES} == set(checks)


@pytest.mark.parametrize(("check", "mistake"), MISTAKES)
def test_mistake_is_found(
    check: str, mistake: dict[str, Any], right: list[Object], checks: dict[str, Check]
) -> None:
    """The check that is there for it says something."""
    wrong = copy.deepcopy(right)
    change(wrong, mistake["in"], mistake["at"], mistake["stands"])

    assert checks[check](wrong)


def test_kubernetes_validate_finds_unknown_fields(
    right: list[Object], tool: Tool, tmp_path: Path
) -> None:
    """A field that Kubernetes does not know fails, in a Deployment and in a pod of another kind."""
    wrong = copy.deepcopy(right)
    change(wrong, "Deployment text-generation-webui", "spec/template/spec/gracePeriod", 630)
    deployment = next(one for one in wrong if one["kind"] == "Deployment")
    (tmp_path / "wrong.yaml").write_text(yaml.safe_dump(deployment))

    done = tool("kubernetes-validate", "-k", "1.35", "--strict", tmp_path / "wrong.yaml")

    assert done.returncode != 0
    assert "gracePeriod" in done.stdout + done.stderr


def test_promtool_finds_a_broken_expression(tool: Tool, tmp_path: Path) -> None:
    """PromQL that does not parse fails."""
    rule = {"alert": "Broken", "expr": "sum(rate(tgwui_num_steps_total[5m])"}
    path = tmp_path / "rules.yaml"
    path.write_text(yaml.safe_dump({"groups": [{"name": "one", "rules": [rule]}]}))

    assert tool("promtool", "check", "rules", path).returncode != 0


@pytest.mark.parametrize(
    ("name", "path", "value", "words"),
    [
        ("kong", "gateway/terminationGracePeriodSeconds", 30, "grace"),
        ("kong", "gateway/lifecycle", {}, "waits only 0 s"),
        (
            "kong",
            f"gateway/proxy/annotations/{BALANCER}-target-group-attributes",
            "deregistration_delay.timeout_seconds=300",
            "lets go after 300 s",
        ),
        (
            "istio-ingress",
            f"service/annotations/{BALANCER}-listener-attributes.TCP-443",
            "tcp.idle_timeout.seconds=350",
            "silent connection after 350 s",
        ),
        (
            "istio-ingress",
            "podAnnotations/proxy.istio.io~config",
            "terminationDrainDuration: 5s",
            "waits only 5 s",
        ),
    ],
)
def test_wrong_number_in_front_is_found(
    name: str, path: str, value: Any, words: str, right: list[Object], ingress_values: Any
) -> None:
    """The load balancer and the proxies behind it are part of the sum."""
    assert drain_problems(right, ingress_values) == []
    wrong = copy.deepcopy(ingress_values)
    put(wrong[name], path, value)

    assert words in " ".join(drain_problems(right, wrong))


def change(objects: Sequence[Object], where: str, path: str, value: Any) -> None:
    """Make the mistake in one object; generated names count without their hash."""
    kind, name = where.split()
    (one,) = (
        one
        for one in objects
        if one["kind"] == kind
        and (one["metadata"]["name"] == name or _without_hash(one["metadata"]["name"]) == name)
    )
    put(one, path, value)


def put(tree: Any, path: str, value: Any) -> None:
    """Set what stands at `a/0/b`, or remove it; `~` stands for a `/` in a key."""
    *parents, last = (
        int(key) if key.isdigit() else key.replace("~", "/") for key in path.split("/")
    )
    for key in parents:
        tree = tree[key]
    if value is None:
        del tree[last]
    else:
        tree[last] = value


def _without_hash(name: str) -> str:
    stem, _, suffix = name.rpartition("-")
    return stem if len(suffix) == 10 else name
