"""What one object says about another must be true: selectors, ports, names.

Each check takes a whole render and returns findings, one sentence each; none means all is well.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from tests.helpers.manifests.pods import MADE_BY_OTHERS, Pod, matches, pods
from tests.helpers.manifests.rendering import Object, of_kind, title

SECRETS = {"text-generation-webui-keys", "hugging-face"}
"""Secrets that people make (docs/kubernetes.md); no manifest holds one."""

GATEWAY = "text-generation-webui-proxy"


def unmatched_selectors(objects: Sequence[Object]) -> list[str]:
    """Every selector selects a pod, and no two Deployments select each other's."""
    found = pods(objects)
    labels = [*(pod.labels for pod in found), *MADE_BY_OTHERS]
    findings = [
        f"{where}: its selector matches no pod"
        for where, selector in _selectors(objects)
        if not any(matches(selector, one) for one in labels)
    ]
    for one in of_kind(objects, "Deployment"):
        for pod in found:
            if pod.owner != title(one) and matches(one["spec"]["selector"], pod.labels):
                findings.append(f"{title(one)}: it selects the pods of {pod.owner} too")
        if not matches(one["spec"]["selector"], one["spec"]["template"]["metadata"]["labels"]):
            findings.append(f"{title(one)}: it does not select its own pods")
    return findings


def wrong_ports(objects: Sequence[Object]) -> list[str]:
    """Every port that is named somewhere is there, has a name, and is used by somebody."""
    found = pods(objects)
    findings = []
    used: set[tuple[str, str | int]] = set()
    for where, selector, port in _port_uses(objects):
        selected = [pod for pod in found if matches(selector, pod.labels)]
        used |= {(pod.owner, port) for pod in selected}
        # Of a group's pods, one may be the only one that serves.
        if not any(pod.has_port(port) for pod in selected):
            findings.append(f"{where}: no pod has a port {port}")
    for pod in found:
        for where, port in _probe_ports(pod):
            used.add((pod.owner, port))
            if not pod.has_port(port):
                findings.append(f"{where}: there is no port {port}")
        for port in pod.ports:
            if "name" not in port:
                findings.append(f"{pod.owner}: port {port['containerPort']} has no name")
            # Ray's own ports are used by Ray.
            is_used = pod.kind == "RayService" or any(
                (pod.owner, name) in used for name in (port.get("name"), port["containerPort"])
            )
            if not is_used:
                findings.append(f"{pod.owner}: nobody uses port {port.get('name')}")
    return findings


def missing_objects(objects: Sequence[Object]) -> list[str]:
    """ConfigMaps, Secrets, claims, accounts, Services and targets that are named are there."""
    there = {(one["kind"], one["metadata"]["name"]) for one in objects}
    there |= {("Secret", name) for name in SECRETS}
    return [
        f"{where}: there is no {kind} {name}"
        for where, kind, name in _names(objects)
        if (kind, name) not in there
    ]


def competing_autoscalers(objects: Sequence[Object]) -> list[str]:
    """A workload has one autoscaler at most, and then no number of its own."""
    findings = []
    targets: dict[tuple[str, str], str] = {}
    workloads = {(one["kind"], one["metadata"]["name"]): one for one in objects}
    for one in of_kind(objects, "HorizontalPodAutoscaler", "ScaledObject"):
        reference = one["spec"]["scaleTargetRef"]
        target = (reference.get("kind", "Deployment"), reference["name"])
        if target in targets:
            findings.append(f"{title(one)}: {targets[target]} scales {target[1]} already")
        targets[target] = title(one)
        if "replicas" in workloads.get(target, {}).get("spec", {}):
            findings.append(f"{target[1]}: spec.replicas fights with {title(one)}")
    return findings


def _selectors(objects: Sequence[Object]) -> Iterator[tuple[str, Mapping[str, Any]]]:
    has_gateway = ("Deployment", GATEWAY) in {
        (one["kind"], one["metadata"]["name"]) for one in objects
    }
    for one in objects:
        spec = one.get("spec", {})
        match one["kind"]:
            case "Service" if "selector" in spec:
                yield title(one), spec["selector"]
            case "PodDisruptionBudget" | "InferencePool":
                yield title(one), spec["selector"]
            case "PodMonitor":
                # The gateway's is there before the gateway is.
                if one["metadata"]["name"] != GATEWAY or has_gateway:
                    yield title(one), spec["selector"]
            case "NetworkPolicy" if spec["podSelector"]:
                yield title(one), spec["podSelector"]
    for pod in pods(objects):
        for constraint in pod.spec.get("topologySpreadConstraints", ()):
            yield f"{pod.owner}, topology spread", constraint["labelSelector"]


def _port_uses(objects: Sequence[Object]) -> Iterator[tuple[str, Mapping[str, Any], str | int]]:
    """(who, selector of the pods, port of the pods)."""
    services = {one["metadata"]["name"]: one for one in of_kind(objects, "Service")}
    for one in objects:
        spec = one.get("spec", {})
        match one["kind"]:
            case "Service" if "selector" in spec:
                for port in spec["ports"]:
                    yield title(one), spec["selector"], port.get("targetPort", port["port"])
            case "InferencePool":
                for port in spec["targetPorts"]:
                    yield title(one), spec["selector"], port["number"]
            case "PodMonitor":
                for end in spec["podMetricsEndpoints"]:
                    yield title(one), spec["selector"], end["port"]
            case "NetworkPolicy":
                for rule in spec.get("ingress", ()):
                    for port in rule.get("ports", ()):
                        yield title(one), spec["podSelector"], port["port"]
            case "Ingress":
                for service, port in _ingress_backends(one):
                    for offered in services.get(service, {}).get("spec", {}).get("ports", ()):
                        if port in (offered["name"], offered["port"]):
                            break
                    else:
                        yield f"{title(one)} -> Service {service}", {}, port


def _ingress_backends(ingress: Object) -> Iterator[tuple[str, str | int]]:
    for rule in ingress["spec"]["rules"]:
        for path in rule["http"]["paths"]:
            service = path["backend"]["service"]
            yield service["name"], service["port"].get("name") or service["port"]["number"]


def _probe_ports(pod: Pod) -> Iterator[tuple[str, str | int]]:
    for container in pod.containers:
        for kind in ("startupProbe", "readinessProbe", "livenessProbe"):
            probe = container.get(kind, {})
            for action in ("httpGet", "grpc", "tcpSocket"):
                if action in probe:
                    yield f"{pod.owner}, {kind}", probe[action]["port"]


def _names(objects: Sequence[Object]) -> Iterator[tuple[str, str, str]]:
    """(who, kind, name) of everything that is referred to by name."""
    for pod in pods(objects):
        yield pod.owner, "ServiceAccount", pod.spec.get("serviceAccountName", "default")
        for volume in pod.spec.get("volumes", ()):
            if "persistentVolumeClaim" in volume:
                claim = volume["persistentVolumeClaim"]["claimName"]
                yield pod.owner, "PersistentVolumeClaim", claim
            if "configMap" in volume:
                yield pod.owner, "ConfigMap", volume["configMap"]["name"]
            if "secret" in volume:
                yield pod.owner, "Secret", volume["secret"]["secretName"]
        if "priorityClassName" in pod.spec:
            yield pod.owner, "PriorityClass", pod.spec["priorityClassName"]
        for container in pod.containers:
            for source in container.get("envFrom", ()):
                yield pod.owner, "ConfigMap", source["configMapRef"]["name"]
            for variable in container.get("env", ()):
                if "secretKeyRef" in variable.get("valueFrom", {}):
                    yield pod.owner, "Secret", variable["valueFrom"]["secretKeyRef"]["name"]
    for one in objects:
        spec = one.get("spec", {})
        match one["kind"]:
            case "HorizontalPodAutoscaler" | "ScaledObject":
                target = spec["scaleTargetRef"]
                yield title(one), target.get("kind", "Deployment"), target["name"]
            case "Ingress":
                for service, _ in _ingress_backends(one):
                    yield title(one), "Service", service
            case "VirtualService":
                for route in spec["http"]:
                    for end in route["route"]:
                        yield title(one), "Service", end["destination"]["host"]
            case "DestinationRule":
                yield title(one), "Service", spec["host"]
            case "InferencePool":
                yield title(one), "Service", spec["endpointPickerRef"]["name"]
            case "NodePool":
                reference = spec["template"]["spec"]["nodeClassRef"]
                yield title(one), reference["kind"], reference["name"]
            case "RoleBinding":
                yield title(one), one["roleRef"]["kind"], one["roleRef"]["name"]
                for subject in one["subjects"]:
                    yield title(one), subject["kind"], subject["name"]
            case "InferenceService":
                yield title(one), "ServingRuntime", spec["predictor"]["model"]["runtime"]
                claim = spec["predictor"]["model"]["storageUri"].split("/")[2]
                yield title(one), "PersistentVolumeClaim", claim
