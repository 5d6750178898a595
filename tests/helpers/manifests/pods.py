"""Every pod that a render leads to, whichever kind of object makes it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from tests.helpers.manifests.rendering import Object, title

MADE_BY_OTHERS = (
    # Istio makes a gateway's pods when it sees the Gateway object.
    {"gateway.networking.k8s.io/gateway-name": "inference"},
)
"""Labels of pods that controllers make and no manifest shows."""


@dataclass(frozen=True)
class Pod:
    """A pod template, and who has it."""

    owner: str
    kind: str
    labels: Mapping[str, str]
    spec: Mapping[str, Any]

    @property
    def containers(self) -> list[Mapping[str, Any]]:
        """All of them, those that run before the others too."""
        return [*self.spec.get("initContainers", ()), *self.spec["containers"]]

    @property
    def ports(self) -> list[Mapping[str, Any]]:
        """What its containers declare."""
        return [port for one in self.containers for port in one.get("ports", ())]

    def has_port(self, port: str | int) -> bool:
        """Is there a port of this name or number?"""
        return any(port in (one.get("name"), one["containerPort"]) for one in self.ports)


def pods(objects: Sequence[Object]) -> list[Pod]:
    """All pods."""
    return [pod for one in objects for pod in _pods_of(one, objects)]


def matches(selector: Mapping[str, Any], labels: Mapping[str, str]) -> bool:
    """Does a selector, written as `matchLabels`, `matchExpressions` or a plain mapping, match?"""
    expressions = selector.get("matchExpressions", ())
    assert all(one["operator"] == "In" for one in expressions), "only In is known here"
    wanted = selector.get("matchLabels", {} if expressions else selector)
    return all(labels.get(name) == value for name, value in wanted.items()) and all(
        labels.get(one["key"]) in one["values"] for one in expressions
    )


def _pods_of(one: Object, objects: Sequence[Object]) -> Iterator[Pod]:
    spec = one.get("spec", {})
    match one["kind"]:
        case "Deployment" | "StatefulSet" | "DaemonSet" | "Job":
            yield _from_template(one, spec["template"])
        case "LeaderWorkerSet":
            group = spec["leaderWorkerTemplate"]
            yield _from_template(one, group["leaderTemplate"])
            yield _from_template(one, group["workerTemplate"])
        case "RayService":
            cluster = spec["rayClusterConfig"]
            yield _from_template(one, cluster["headGroupSpec"]["template"])
            for group in cluster.get("workerGroupSpecs", ()):
                yield _from_template(one, group["template"])
        case "InferenceService":
            yield _of_inference_service(one, objects)
        case "WorkflowTemplate":
            shared = {
                "serviceAccountName": spec["serviceAccountName"],
                "securityContext": spec["securityContext"],
                "volumes": spec["volumes"],
                "enableServiceLinks": False,
                "terminationGracePeriodSeconds": 30,
            }
            for template in spec["templates"]:
                if "container" in template:
                    container = {"name": "main", **template["container"]}
                    own = {key: template[key] for key in ("tolerations",) if key in template}
                    labels = spec["podMetadata"]["labels"]
                    body = {**shared, **own, "containers": [container]}
                    yield Pod(title(one), one["kind"], labels, body)


def _from_template(one: Object, template: Mapping[str, Any]) -> Pod:
    return Pod(title(one), one["kind"], template["metadata"]["labels"], template["spec"])


def _of_inference_service(one: Object, objects: Sequence[Object]) -> Pod:
    """KServe merges the predictor over the runtime that it names."""
    predictor = dict(one["spec"]["predictor"])
    name = predictor.pop("model")["runtime"]
    (runtime,) = (
        other
        for other in objects
        if other["kind"] == "ServingRuntime" and other["metadata"]["name"] == name
    )
    for key in ("minReplicas", "maxReplicas", "deploymentStrategy"):
        predictor.pop(key, None)
    inherited = {key: runtime["spec"][key] for key in ("containers", "volumes")}
    return Pod(title(one), one["kind"], runtime["spec"]["labels"], {**inherited, **predictor})
