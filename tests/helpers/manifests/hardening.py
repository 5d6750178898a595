"""Pods that can do no more than they must. Checks return findings; none means all is well."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from tests.helpers.manifests.pods import Pod, pods
from tests.helpers.manifests.rendering import Object, of_kind, title

TALK_TO_THE_API_SERVER = {
    "text-generation-webui-proxy",
    "text-generation-webui-picker",
    "serve-model",
}
"""Accounts whose pods get a token."""

DEVICES = {
    "nvidia.com/gpu": {"key": "gpu-load", "operator": "Equal", "value": "true"},
    "aws.amazon.com/neuron": {"key": "aws.amazon.com/neuron", "operator": "Exists"},
}
"""What a pod asks for, and the taint of the machines that have it."""


def soft_pods(objects: Sequence[Object]) -> list[str]:
    """Not root, nothing of the host, no capability, nothing writable, bounded memory."""
    findings = []
    for pod in pods(objects):
        findings += [f"{pod.owner}: {finding}" for finding in _of_pod(pod)]
    return findings


def wrong_tolerations(objects: Sequence[Object]) -> list[str]:
    """Who asks for a device tolerates its machines' taint, and Karpenter taints them so."""
    findings = []
    for pod in pods(objects):
        for container in pod.containers:
            for device, taint in DEVICES.items():
                limits = container.get("resources", {}).get("limits", {})
                wanted = {**taint, "effect": "NoSchedule"}
                if device in limits and wanted not in pod.spec.get("tolerations", ()):
                    findings.append(f"{pod.owner}: asks for {device}, does not tolerate its taint")
    tainted = {taint["key"] for taint in DEVICES.values()}
    for pool in of_kind(objects, "NodePool"):
        for taint in pool["spec"]["template"]["spec"]["taints"]:
            if taint["key"] not in tainted or taint["value"] != "true":
                findings.append(f"{title(pool)}: nobody tolerates {taint['key']}")
    return findings


def wide_roles(objects: Sequence[Object]) -> list[str]:
    """No role is for everything, and none is for the whole cluster."""
    findings = [f"{title(one)}: for the whole cluster" for one in of_kind(objects, "ClusterRole")]
    for role in of_kind(objects, "Role"):
        for rule in role["rules"]:
            if "*" in (*rule["apiGroups"], *rule["resources"], *rule["verbs"]):
                findings.append(f"{title(role)}: '*' in a rule")
            if "secrets" in rule["resources"]:
                findings.append(f"{title(role)}: reads Secrets")
    return findings


def secrets_in_manifests(objects: Sequence[Object]) -> list[str]:
    """No Secret comes from a file in git."""
    return [f"{title(one)}: a Secret in a manifest" for one in of_kind(objects, "Secret")]


def _of_pod(pod: Pod) -> list[str]:
    spec = pod.spec
    context = spec.get("securityContext", {})
    has_token = spec.get("automountServiceAccountToken") is not False
    volumes = spec.get("volumes", ())
    faults = {
        "may run as root": not (context.get("runAsNonRoot") and context.get("runAsUser")),
        "has no seccomp profile": context.get("seccompProfile") != {"type": "RuntimeDefault"},
        "shares the host's namespaces": any(
            spec.get(name) for name in ("hostNetwork", "hostPID", "hostIPC")
        ),
        "mounts the host's files": any("hostPath" in volume for volume in volumes),
        "gets variables of Services": spec.get("enableServiceLinks") is not False,
        "has a token of the API server": has_token
        and spec.get("serviceAccountName") not in TALK_TO_THE_API_SERVER,
        "may fill the node's disk": any(
            "sizeLimit" not in volume["emptyDir"] for volume in volumes if "emptyDir" in volume
        ),
    }
    findings = [fault for fault, is_so in faults.items() if is_so]
    for container in pod.containers:
        findings += [f"{container['name']} {fault}" for fault in _of_container(container)]
    return findings


def _of_container(container: Mapping[str, Any]) -> list[str]:
    context = container.get("securityContext", {})
    resources = container.get("resources", {})
    faults = {
        "may gain privileges": context.get("allowPrivilegeEscalation") is not False,
        "may write to its image": context.get("readOnlyRootFilesystem") is not True,
        "keeps capabilities": context.get("capabilities", {}).get("drop") != ["ALL"],
        "has no memory limit": "memory" not in resources.get("limits", {}),
        "requests no CPU": "cpu" not in resources.get("requests", {}),
    }
    return [fault for fault, is_so in faults.items() if is_so]
