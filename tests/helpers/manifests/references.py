"""What one object says about another must be true: selectors, ports, names.

Each check takes a whole render and returns findings, one sentence each; none means all is well.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from tests.helpers.manifests.pods import MADE_BY_OTHERS, Pod, matches, pods
from tests.helpers.manifests.rendering import Object, of_kind, title

SECRETS = {"text-generation-webui-keys", "text-generation-webui-redis", "hugging-face"}
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
    findings = _wrong_backends(objects)
    used: set[tuple[str, str | int]] = set()
    for where, selector, port in _port_uses(objects):
        selected = [pod for pod in found if matches(selector, pod.labels)]
        used |= {(pod.owner, port) for pod in selected}
        # Of a group's pods, one may be the only one that serves.
        if selected and not any(pod.has_port(port) for pod in selected):
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
    """(who, selector of pods)."""
    has_gateway = any(one["metadata"]["name"] == GATEWAY for one in of_kind(objects, "Deployment"))
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
                for port in _ports_of_policy(spec):
                    yield title(one), spec["podSelector"], port


def _ports_of_policy(spec: Mapping[str, Any]) -> list[str | int]:
    return [port["port"] for rule in spec.get("ingress", ()) for port in rule.get("ports", ())]


def _wrong_backends(objects: Sequence[Object]) -> list[str]:
    services = {one["metadata"]["name"]: one["spec"] for one in of_kind(objects, "Service")}
    findings = []
    for ingress in of_kind(objects, "Ingress"):
        for service, port in _ingress_backends(ingress):
            ports = services.get(service, {}).get("ports", ())
            if not any(port in (one["name"], one["port"]) for one in ports):
                findings.append(f"{title(ingress)}: Service {service} has no port {port}")
    return findings


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
        for kind, name in _names_in_pod(pod):
            yield pod.owner, kind, name
    for one in objects:
        names_in = _NAMES.get(one["kind"])
        for kind, name in names_in(one) if names_in else ():
            yield title(one), kind, name


def _names_in_pod(pod: Pod) -> Iterator[tuple[str, str]]:
    yield "ServiceAccount", pod.spec.get("serviceAccountName", "default")
    if "priorityClassName" in pod.spec:
        yield "PriorityClass", pod.spec["priorityClassName"]
    for volume in pod.spec.get("volumes", ()):
        if "persistentVolumeClaim" in volume:
            yield "PersistentVolumeClaim", volume["persistentVolumeClaim"]["claimName"]
        if "configMap" in volume:
            yield "ConfigMap", volume["configMap"]["name"]
        if "secret" in volume:
            yield "Secret", volume["secret"]["secretName"]
    for container in pod.containers:
        for source in container.get("envFrom", ()):
            yield "ConfigMap", source["configMapRef"]["name"]
        for variable in container.get("env", ()):
            if "secretKeyRef" in variable.get("valueFrom", {}):
                yield "Secret", variable["valueFrom"]["secretKeyRef"]["name"]


def _names_in_autoscaler(one: Object) -> Iterator[tuple[str, str]]:
    target = one["spec"]["scaleTargetRef"]
    yield target.get("kind", "Deployment"), target["name"]


def _names_in_ingress(one: Object) -> Iterator[tuple[str, str]]:
    for service, _ in _ingress_backends(one):
        yield "Service", service


def _names_in_virtual_service(one: Object) -> Iterator[tuple[str, str]]:
    for route in one["spec"]["http"]:
        for end in route["route"]:
            yield "Service", end["destination"]["host"]


def _names_in_destination_rule(one: Object) -> Iterator[tuple[str, str]]:
    yield "Service", one["spec"]["host"]


def _names_in_route(one: Object) -> Iterator[tuple[str, str]]:
    for parent in one["spec"]["parentRefs"]:
        yield "Gateway", parent["name"]
    for rule in one["spec"]["rules"]:
        for backend in rule["backendRefs"]:
            yield backend.get("kind", "Service"), backend["name"]


def _names_in_pool(one: Object) -> Iterator[tuple[str, str]]:
    yield "Service", one["spec"]["endpointPickerRef"]["name"]


def _names_in_node_pool(one: Object) -> Iterator[tuple[str, str]]:
    reference = one["spec"]["template"]["spec"]["nodeClassRef"]
    yield reference["kind"], reference["name"]


def _names_in_role_binding(one: Object) -> Iterator[tuple[str, str]]:
    yield one["roleRef"]["kind"], one["roleRef"]["name"]
    for subject in one["subjects"]:
        yield subject["kind"], subject["name"]


def _names_in_inference_service(one: Object) -> Iterator[tuple[str, str]]:
    model = one["spec"]["predictor"]["model"]
    yield "ServingRuntime", model["runtime"]
    yield "PersistentVolumeClaim", model["storageUri"].split("/")[2]


_NAMES = {
    "DestinationRule": _names_in_destination_rule,
    "HTTPRoute": _names_in_route,
    "HorizontalPodAutoscaler": _names_in_autoscaler,
    "InferencePool": _names_in_pool,
    "InferenceService": _names_in_inference_service,
    "Ingress": _names_in_ingress,
    "NodePool": _names_in_node_pool,
    "RoleBinding": _names_in_role_binding,
    "ScaledObject": _names_in_autoscaler,
    "VirtualService": _names_in_virtual_service,
}
"""How each kind refers to others."""
