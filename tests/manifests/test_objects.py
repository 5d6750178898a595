"""Everything in `k8s/` renders, and to something right: by schema and by reference."""

from __future__ import annotations

import functools
import json
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
import yaml

from tests.helpers.manifests.drain import drain_problems
from tests.helpers.manifests.hardening import (
    secrets_in_manifests,
    soft_pods,
    wide_roles,
    wrong_tolerations,
)
from tests.helpers.manifests.pods import pods
from tests.helpers.manifests.promises import unpinned_images, wrong_probe_paths, wrong_settings
from tests.helpers.manifests.references import (
    competing_autoscalers,
    missing_objects,
    unmatched_selectors,
    wrong_ports,
)
from tests.helpers.manifests.rendering import (
    K8S,
    Object,
    RenderError,
    kustomizations,
    load_all,
    render_together,
)
from tests.helpers.manifests.schemas import CORE_GROUPS, custom_resource_problems, embedded_pods
from tests.helpers.server_process import ServerProcess
from tests.manifests.conftest import Tool

KUBERNETES = "1.35"
"""As in k8s/cluster/cluster.yaml."""

AUTOSCALING = ("components/hpa-requests", "components/hpa-waiting", "components/keda")

Renders = dict[str, list[Object]]
Check = Callable[[Sequence[Object]], list[str]]


def test_there_is_what_the_documentation_promises(renders: Renders) -> None:
    """All overlays and components are found, so that no check passes for want of anything."""
    assert set(kustomizations("components")) == {
        f"components/{name}"
        for name in (
            *("gateway", "gateway-api-inference", "gateway-redis", "gpu-pod"),
            *("hpa-requests", "hpa-waiting"),
            *("istio", "karpenter", "keda", "kong", "kserve", "logging", "monitoring", "priority"),
            "without-efs",
        )
    }
    assert set(kustomizations("overlays")) >= {
        *(f"overlays/{name}" for name in ("cpu", "gpu", "gpu-shared", "neuron")),
        *(f"overlays/vllm-multinode/{name}" for name in ("kuberay", "leader-worker-set")),
    }
    assert min(len(objects) for objects in renders.values()) >= 5


@pytest.mark.parametrize(
    "check",
    [
        competing_autoscalers,
        custom_resource_problems,
        drain_problems,
        missing_objects,
        secrets_in_manifests,
        soft_pods,
        unmatched_selectors,
        unpinned_images,
        wide_roles,
        wrong_ports,
        wrong_settings,
        wrong_tolerations,
    ],
)
def test_no_check_finds_anything(check: Check, renders: Renders) -> None:
    """Each check, over each overlay, component and example."""
    findings = {name: check(objects) for name, objects in renders.items()}

    assert {name: found for name, found in findings.items() if found} == {}


def test_core_kinds_are_what_kubernetes_takes(renders: Renders, tool: Tool, tmp_path: Path) -> None:
    """kubernetes-validate, strictly: no unknown field, no wrong type; pods in other kinds too."""
    objects = [one for several in renders.values() for one in several]
    core = [one for one in objects if one["apiVersion"] in CORE_GROUPS]
    text = unique_documents([*core, *embedded_pods(objects)])
    (tmp_path / "all.yaml").write_text(text)

    done = tool("kubernetes-validate", "-k", KUBERNETES, "--strict", tmp_path / "all.yaml")

    lines = (done.stdout + done.stderr).splitlines()
    assert [line for line in lines if not line.startswith("INFO")] == []
    assert done.returncode == 0
    assert len([line for line in lines if "passed" in line]) > 100


def test_probes_ask_for_what_is_there(
    renders: Renders, server: ServerProcess, gateway: ServerProcess
) -> None:
    """Every probe's path is answered by a running server, and by a running gateway."""
    asked: set[tuple[str, str]] = set()

    def answers(name: str, process: ServerProcess) -> Callable[[str], bool]:
        def has(path: str) -> bool:
            asked.add((name, path))
            return process.get(path).status_code == 200

        return functools.cache(has)

    programs = {"serve": answers("serve", server), "gateway": answers("gateway", gateway)}
    findings = {name: wrong_probe_paths(objects, programs) for name, objects in renders.items()}

    assert {name: found for name, found in findings.items() if found} == {}
    assert asked == {
        (program, f"/health/{probe}")
        for program in programs
        for probe in ("live", "ready", "startup")
    }


def test_autoscaling_components_exclude_one_another(tmp_path: Path) -> None:
    """Two of them together are refused by kustomize: the second has no number left to take over."""
    pairs = [(one, two) for one in AUTOSCALING for two in AUTOSCALING if one != two]
    for number, pair in enumerate(pairs):
        # KEDA needs the gateway.
        components = ["components/gateway", *pair]
        with pytest.raises(RenderError, match=r"replicas|already registered id"):
            render_together(tmp_path / str(number), "overlays/gpu", components)


def test_components_go_together(tmp_path: Path) -> None:
    """All that do not exclude one another, at once, and still nothing is found."""
    components = [
        name
        for name in kustomizations("components")
        if name not in AUTOSCALING[1:] and not name.endswith(("kserve", "without-efs"))
    ]

    objects = render_together(tmp_path / "all", "overlays/gpu", components)

    for check in (competing_autoscalers, drain_problems, missing_objects, unmatched_selectors):
        assert check(objects) == []
    assert wrong_ports(objects) == []


def test_gated_models_can_be_pulled(renders: Renders) -> None:
    """Whoever pulls one gets the token of Hugging Face, where somebody has made its Secret."""
    pulling = {
        pod.owner: {one["name"]: one for one in container["env"]}
        for objects in renders.values()
        for pod in pods(objects)
        for container in pod.containers
        if container.get("args", [])[:2] == ["models", "pull"]
    }

    assert set(pulling) == {"Job models-pull", "WorkflowTemplate serve-model"}
    for owner, variables in pulling.items():
        assert variables["HF_TOKEN"]["valueFrom"]["secretKeyRef"]["optional"] is True, owner


def test_two_pickers_can_be_rolled_out(renders: Renders) -> None:
    """Only their leader is ready: a successor beside the old ones would wait for ever."""
    (picker,) = (
        one
        for one in renders["overlays/gpu + components/gateway-api-inference"]
        if one["kind"] == "Deployment" and one["metadata"]["name"].endswith("-picker")
    )
    (container,) = picker["spec"]["template"]["spec"]["containers"]

    assert "--ha-enable-leader-election" in container["args"]
    assert picker["spec"].get("strategy") == {"type": "Recreate"}


def test_checkov_agrees(renders: Renders, tool: Tool, tmp_path: Path) -> None:
    """A second opinion on pods, roles and policies; what it may not say, with why, is listed."""
    skipped = yaml.safe_load((Path(__file__).parent / "checkov-skips.yaml").read_text())
    core = [
        one
        for several in renders.values()
        for one in several
        if one["apiVersion"] in CORE_GROUPS and one["kind"] != "Namespace"
    ]
    (tmp_path / "all.yaml").write_text(unique_documents(core))

    done = tool(
        "checkov",
        *("--framework", "kubernetes", "--file", tmp_path / "all.yaml", "--output", "json"),
        *("--skip-download", "--quiet", "--compact", "--skip-check", ",".join(skipped)),
    )

    report = json.loads(done.stdout)
    failed = report["results"]["failed_checks"]
    assert [(one["check_id"], one["check_name"], one["resource"]) for one in failed] == []
    assert report["summary"]["resource_count"] > 50


def test_kubernetes_version_is_that_of_the_cluster() -> None:
    """What is validated against is what is installed."""
    (cluster,) = load_all((K8S / "cluster/cluster.yaml").read_text())

    assert cluster["metadata"]["version"] == KUBERNETES


def unique_documents(objects: Sequence[Object]) -> str:
    """All objects as one YAML file, equal ones once."""
    texts = {yaml.safe_dump(one) for one in objects}
    return "---\n".join(sorted(texts))
