"""What the manifests say about the program must be what the program says: settings, paths, metrics.

Each check takes a whole render and returns findings, one sentence each; none means all is well.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from typing import Any

from tests.helpers.manifests.pods import Pod, pods
from tests.helpers.manifests.rendering import Object, of_kind, title
from tgwui_k8s import __version__
from tgwui_k8s.errors import UsageError
from tgwui_k8s.setting_field import VARIABLE_PREFIX
from tgwui_k8s.settings import load_settings

IMAGE = "text-generation-webui"
NEXT_VERSIONS = {"0.2.0"}
"""What k8s/examples/canary tries."""

OF_PATCHES = {"TGWUI_STATE_DIR"}
"""Variables of text-generation-webui itself, patched; its image's tag ends on -upstream."""

OTHER_SERVERS_PATHS = {"/health", "/v1/models"}
"""Probe paths of vLLM and TGI."""

METRIC = re.compile(r"\b((?:tgwui|kube|vllm|tgi)[_:][a-zA-Z0-9_:]+)\b(?!\s*=)")
OTHERS_METRICS = {
    # kube-state-metrics
    "kube_deployment_spec_replicas",
    "kube_deployment_status_condition",
    "kube_deployment_status_replicas_ready",
    "kube_horizontalpodautoscaler_spec_max_replicas",
    "kube_horizontalpodautoscaler_status_current_replicas",
    "kube_pod_container_status_restarts_total",
    "kube_pod_status_phase",
    # TGI's and vLLM's own
    "tgi_request_count",
    "vllm:num_requests_waiting",
}


def is_ours(container: Mapping[str, Any]) -> bool:
    """Does it run our image?"""
    return bool(container["image"].rpartition("/")[2].startswith(f"{IMAGE}:"))


def environment(container: Mapping[str, Any], objects: Sequence[Object]) -> dict[str, str]:
    """The variables that its program gets, as far as the manifests know their values."""
    variables: dict[str, str] = {}
    for source in container.get("envFrom", ()):
        for one in of_kind(objects, "ConfigMap"):
            if one["metadata"]["name"] == source["configMapRef"]["name"]:
                variables |= one["data"]
    return variables | {
        one["name"]: one["value"] for one in container.get("env", ()) if "value" in one
    }


def wrong_settings(objects: Sequence[Object]) -> list[str]:
    """Every `TGWUI_` variable is a setting, and the values are ones that the server takes."""
    findings = []
    for pod, container in _our_containers(objects):
        variables = {
            name: value
            for name, value in environment(container, objects).items()
            if name.startswith(VARIABLE_PREFIX)
            and not (name in OF_PATCHES and container["image"].endswith("-upstream"))
        }
        try:
            _, provenance = load_settings({}, variables)
        except UsageError as error:
            findings.append(f"{pod.owner}: {error}")
        else:
            findings += [f"{pod.owner}: {warning}" for warning in provenance.warnings]
    return findings


def unpinned_images(objects: Sequence[Object]) -> list[str]:
    """Every image has a tag that does not move; ours is the version of this checkout."""
    findings = []
    for pod in pods(objects):
        for container in pod.containers:
            image = container["image"]
            name, _, tag = image.rpartition(":")
            if "@sha256:" in image:
                continue
            if not name or "/" in tag or tag in ("latest", "main", "master"):
                findings.append(f"{pod.owner}: image {image} is not pinned")
            elif is_ours(container) and tag.split("-")[0] not in {__version__, *NEXT_VERSIONS}:
                findings.append(f"{pod.owner}: image {image} is not version {__version__}")
    return findings


def wrong_probe_paths(
    objects: Sequence[Object], answers: Mapping[str, Callable[[str], bool]]
) -> list[str]:
    """Every probe asks for a path that its program has. `answers`: by its first argument."""
    findings = []
    for pod in pods(objects):
        for container in pod.containers:
            for kind in ("startupProbe", "readinessProbe", "livenessProbe"):
                path = container.get(kind, {}).get("httpGet", {}).get("path")
                if path is None:
                    continue
                has_path = answers.get(container["args"][0]) if is_ours(container) else None
                if has_path is None:
                    has_path = OTHER_SERVERS_PATHS.__contains__
                if not has_path(path):
                    findings.append(f"{pod.owner}, {kind}: there is no {path}")
    return findings


def unknown_metrics(
    expressions: Mapping[str, Collection[str]], known: Collection[str]
) -> list[str]:
    """Every metric in some PromQL expressions is one of `known` or of another program's."""
    return [
        f"{where}: there is no metric {name}"
        for where, several in expressions.items()
        for expression in several
        for name in METRIC.findall(expression)
        if name not in known and name not in OTHERS_METRICS
    ]


def expressions_of(objects: Sequence[Object]) -> dict[str, list[str]]:
    """PromQL of rules, dashboards and KEDA's triggers, by where it stands."""
    found: dict[str, list[str]] = {}
    for one in objects:
        match one["kind"]:
            case "PrometheusRule":
                rules = [rule for group in one["spec"]["groups"] for rule in group["rules"]]
                found |= {rule["alert"]: [rule["expr"]] for rule in rules}
            case "ScaledObject":
                found[title(one)] = [
                    trigger["metadata"]["query"]
                    for trigger in one["spec"]["triggers"]
                    if trigger["type"] == "prometheus"
                ]
            case "ConfigMap" if "grafana_dashboard" in one["metadata"].get("labels", {}):
                for name, text in one["data"].items():
                    found[f"{title(one)}, {name}"] = list(_dashboard_expressions(json.loads(text)))
    return found


def asked_metrics(objects: Sequence[Object]) -> dict[str, list[str]]:
    """Metric names that HorizontalPodAutoscalers ask the adapter for, by who asks."""
    return {
        title(one): [metric["pods"]["metric"]["name"] for metric in one["spec"]["metrics"]]
        for one in of_kind(objects, "HorizontalPodAutoscaler")
        if all(metric["type"] == "Pods" for metric in one["spec"]["metrics"])
    }


def exposed_names(exposition: str) -> set[str]:
    """The names of all series that an exposition can have, by its `# TYPE` lines."""
    names = set()
    for name, kind in re.findall(r"^# TYPE (\S+) (\S+)$", exposition, re.MULTILINE):
        names.add(name)
        if kind == "histogram":
            names |= {f"{name}_bucket", f"{name}_sum", f"{name}_count"}
    return names


def _our_containers(objects: Sequence[Object]) -> Iterator[tuple[Pod, Mapping[str, Any]]]:
    for pod in pods(objects):
        for container in pod.containers:
            if is_ours(container):
                yield pod, container


def _dashboard_expressions(dashboard: Mapping[str, Any]) -> Iterator[str]:
    for panel in dashboard["panels"]:
        for target in panel.get("targets", ()):
            # What Grafana fills in.
            yield target["expr"].replace("$__rate_interval", "5m").replace("$namespace", "any")
