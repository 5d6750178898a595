"""The drain sum: every number that could cut an answer short, in one place.

    engine's longest answer <= gateway's                    both give up together
    longest answer   <= drain timeout                       nothing outlives the server's patience
    preStop          >= 10 s                                everybody has heard that the pod leaves
    preStop + drain timeout + teardown  <= terminationGracePeriodSeconds
    preStop + drain timeout             <= Envoy's drain    <= terminationGracePeriodSeconds
    terminationGracePeriodSeconds       <= Karpenter's terminationGracePeriod
    longest answer   <= Kong's and the load balancer's patience with silence
    longest answer   <= the load balancer's deregistration delay
    the ingress' own grace              >= its preStop + longest answer + teardown
    start-up probe's patience           <= progressDeadlineSeconds

docs/kubernetes.md, "The drain sum", says why. Findings are sentences; none means the sum is right.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

import yaml

from tests.helpers.manifests.pods import Pod, pods
from tests.helpers.manifests.promises import environment, is_ours
from tests.helpers.manifests.rendering import Object, of_kind, title
from tgwui_k8s.settings import load_settings

ENDPOINT_LAG_SECONDS = 10
"""How long kube-proxy, gateways and controllers may take to hear that a pod leaves."""

TEARDOWN_SECONDS = 15
"""After the drain: farewells 2 s, open connections 2 s, the engine 3 s, the runtime; doubled."""

_DURATION = re.compile(r"^(\d+)(s|m|h)?$")
_UNITS = {"s": 1, "m": 60, "h": 3600, None: 1}


def drain_problems(objects: Sequence[Object], values: Mapping[str, Any] | None = None) -> list[str]:
    """Of a render, and of the Helm values of what stands in front (`kong`, `istio-ingress`)."""
    longest = longest_answer(objects)
    findings = []
    for pod in pods(objects):
        findings += _of_pod(pod, objects) if _serves(pod) else ()
    grace = max((pod.spec["terminationGracePeriodSeconds"] for pod in pods(objects)), default=0)
    findings += _of_gateways(objects)
    findings += _of_karpenter(objects, grace)
    findings += _of_kong(objects, longest)
    findings += _of_istio(objects)
    for name, one in (values or {}).items():
        findings += [f"{name} values: {finding}" for finding in _of_ingress(one, longest)]
    return findings


def _serves(pod: Pod) -> bool:
    """Do people wait for its answers? Of a group's pods, one may do nothing but compute."""
    return any("lifecycle" in one for one in pod.containers)


def longest_answer(objects: Sequence[Object]) -> float:
    """Seconds that the most patient server of ours gives a request."""
    limits = [_settings(pod, objects).max_request_seconds for pod in _servers(objects)]
    return max(limits, default=600.0)


def _servers(objects: Sequence[Object]) -> list[Pod]:
    return [
        pod
        for pod in pods(objects)
        if any(is_ours(one) and one["args"][0] in ("serve", "gateway") for one in pod.containers)
    ]


def _settings(pod: Pod, objects: Sequence[Object]) -> Any:
    (server,) = (one for one in pod.containers if is_ours(one))
    return load_settings({}, environment(server, objects))[0].server


def _of_pod(pod: Pod, objects: Sequence[Object]) -> list[str]:
    findings = []
    grace = pod.spec["terminationGracePeriodSeconds"]
    (container,) = (one for one in pod.containers if "lifecycle" in one)
    pre_stop = container["lifecycle"]["preStop"]["sleep"]["seconds"]
    if pre_stop < ENDPOINT_LAG_SECONDS:
        findings.append(f"preStop {pre_stop} s ends before everybody knows")
    drain, longest = _patience(pod, container, objects)
    if drain < longest:
        findings.append(f"drain timeout {drain:g} s is less than the longest answer {longest:g} s")
    needed = pre_stop + drain + TEARDOWN_SECONDS
    if grace < needed:
        findings.append(f"grace {grace} s is less than preStop + drain + teardown {needed:g} s")
    envoy = pod_annotation(pod, objects)
    if envoy is not None and not pre_stop + drain <= seconds(envoy) <= grace:
        findings.append(f"Envoy's drain {envoy} is not between {pre_stop + drain:g} and {grace} s")
    if pod.kind == "Deployment" and is_ours(container):
        probe = container["startupProbe"]
        deadline = _deployment(pod, objects).get("progressDeadlineSeconds", 600)
        if probe["periodSeconds"] * probe["failureThreshold"] > deadline:
            findings.append("the roll-out gives up before the start-up probe does")
    return [f"{pod.owner}: {finding}" for finding in findings]


def _patience(
    pod: Pod, container: Mapping[str, Any], objects: Sequence[Object]
) -> tuple[float, float]:
    """Drain timeout and longest answer, both in seconds."""
    if is_ours(container):
        settings = _settings(pod, objects)
        return settings.drain_timeout, settings.max_request_seconds
    said = " ".join([*container.get("command", ()), *container.get("args", ())])
    found = re.search(r"--shutdown-timeout[ =](\d+)", said)
    # TGI drains without a limit of its own.
    return (float(found[1]) if found else 600.0), 600.0


def pod_annotation(pod: Pod, objects: Sequence[Object]) -> str | None:
    """Envoy's drain time in a pod's annotation, if it has one."""
    metadata = _deployment(pod, objects).get("template", {}).get("metadata", {})
    text = metadata.get("annotations", {}).get("proxy.istio.io/config")
    return yaml.safe_load(text)["terminationDrainDuration"] if text else None


def _deployment(pod: Pod, objects: Sequence[Object]) -> Mapping[str, Any]:
    for one in of_kind(objects, "Deployment"):
        if title(one) == pod.owner:
            return one["spec"]
    return {}


def _of_gateways(objects: Sequence[Object]) -> list[str]:
    """A gateway is as patient as the engines behind it."""
    limits = {pod.owner: _settings(pod, objects).max_request_seconds for pod in _servers(objects)}
    return [
        f"{owner}: gives up after {limit:g} s, engines go on for {max(limits.values()):g} s"
        for owner, limit in limits.items()
        if limit < max(limits.values())
    ]


def _of_karpenter(objects: Sequence[Object], grace: float) -> list[str]:
    return [
        f"{title(pool)}: terminationGracePeriod {limit} cuts pods' grace of {grace:g} s"
        for pool in of_kind(objects, "NodePool")
        if seconds(limit := pool["spec"]["template"]["spec"]["terminationGracePeriod"]) <= grace
    ]


def _of_kong(objects: Sequence[Object], longest: float) -> list[str]:
    findings = []
    services = {one["metadata"]["name"]: one for one in of_kind(objects, "Service")}
    for ingress in of_kind(objects, "Ingress"):
        if ingress["spec"]["ingressClassName"] != "kong":
            continue
        if ingress["metadata"]["annotations"].get("konghq.com/response-buffering") != "false":
            findings.append(f"{title(ingress)}: Kong buffers streams")
        for rule in ingress["spec"]["rules"]:
            for path in rule["http"]["paths"]:
                service = services[path["backend"]["service"]["name"]]
                annotations = service["metadata"].get("annotations", {})
                for kind in ("read", "write"):
                    milliseconds = int(annotations.get(f"konghq.com/{kind}-timeout", 60_000))
                    if milliseconds < longest * 1000:
                        findings.append(f"{title(service)}: Kong's {kind} timeout cuts answers")
                if annotations.get("konghq.com/retries") != "0":
                    findings.append(f"{title(service)}: Kong repeats requests")
    return findings


def _of_istio(objects: Sequence[Object]) -> list[str]:
    return [
        f"{title(one)}: a time-out cuts answers"
        for one in of_kind(objects, "VirtualService")
        for route in one["spec"]["http"]
        if route.get("timeout") != "0s"
    ] + [
        f"{title(one)}: a time-out cuts answers"
        for one in of_kind(objects, "HTTPRoute")
        for rule in one["spec"]["rules"]
        if rule.get("timeouts", {}).get("request") != "0s"
    ]


def _of_ingress(values: Mapping[str, Any], longest: float) -> list[str]:
    """An ingress' pods behind a network load balancer."""
    findings = []
    body = values.get("gateway", values)
    annotations = body.get("proxy", body.get("service", {}))["annotations"]
    prefix = "service.beta.kubernetes.io/aws-load-balancer-"
    target = annotations[f"{prefix}target-group-attributes"]
    delay = _attribute(target, "deregistration_delay.timeout_seconds")
    if delay < longest:
        findings.append(f"the load balancer lets go after {delay:g} s")
    for name, text in annotations.items():
        if name.startswith(f"{prefix}listener-attributes"):
            idle = _attribute(text, "tcp.idle_timeout.seconds")
            if idle < longest:
                findings.append(f"the load balancer drops a silent connection after {idle:g} s")
    hook = body.get("lifecycle", {}).get("preStop", {}).get("exec", {}).get("command", [""])[-1]
    sleep, quit_after = re.search(r"sleep (\d+)", hook), re.search(r"--timeout=(\d+)", hook)
    stops = float(sleep[1]) if sleep else 0.0
    patience = float(quit_after[1]) if quit_after else 0.0
    config = body.get("podAnnotations", {}).get("proxy.istio.io/config")
    if config:
        patience = seconds(yaml.safe_load(config)["terminationDrainDuration"])
    if patience < longest:
        findings.append(f"the proxy itself waits only {patience:g} s for its last answer")
    grace = body["terminationGracePeriodSeconds"]
    if grace < stops + patience + TEARDOWN_SECONDS:
        findings.append(f"grace {grace} s is less than its own sum")
    return findings


def _attribute(text: str, name: str) -> float:
    pairs = dict(pair.split("=", 1) for pair in text.split(","))
    return float(pairs[name])


def seconds(text: str) -> float:
    """`630s`, `30m` or `1h` in seconds."""
    found = _DURATION.match(text)
    assert found, f"{text!r} is no duration"
    return float(found[1]) * _UNITS[found[2]]
