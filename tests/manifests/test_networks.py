"""Who reaches whom: what Kong's paths lead to, and whom the network policies let in and out."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from tests.helpers.manifests.hardening import TALK_TO_THE_API_SERVER
from tests.helpers.manifests.pods import Pod, matches, pods
from tests.helpers.manifests.rendering import Object, of_kind, render_together

ENGINE = "Deployment text-generation-webui"
GATEWAY = "Deployment text-generation-webui-proxy"
NAMESPACE = "text-generation-webui"

Peer = tuple[str, Mapping[str, str]]
"""A pod's namespace and labels."""

THE_GATEWAY: Peer = (
    NAMESPACE,
    {
        "app.kubernetes.io/name": "text-generation-webui-proxy",
        "app.kubernetes.io/component": "gateway",
    },
)
PROMETHEUS: Peer = ("monitoring", {"app.kubernetes.io/name": "prometheus"})

Renders = dict[str, list[Object]]


@pytest.mark.parametrize(
    "components", [("gateway", "kong"), ("kong", "gateway")], ids=lambda pair: " then ".join(pair)
)
def test_with_the_gateway_kong_leads_past_it_to_the_page_alone(
    components: Sequence[str], tmp_path: Path
) -> None:
    """In whichever order somebody lists the two: the API is the gateway's, by either path."""
    folders = [f"components/{name}" for name in components]
    objects = render_together(tmp_path / "both", "overlays/gpu", folders)

    assert set(_routes(objects)) == {
        ("/v1", GATEWAY, "http"),
        ("/api", GATEWAY, "http"),
        ("/", ENGINE, "web"),
    }


def test_production_has_no_way_around_the_gateway(renders: Renders) -> None:
    """The example's paths, as the ones above."""
    routes = set(_routes(renders["examples/production"]))

    assert {path for path, owner, _ in routes if owner == GATEWAY} == {"/v1", "/api"}
    assert {(path, port) for path, owner, port in routes if owner != GATEWAY} == {("/", "web")}


def test_without_the_gateway_kong_leads_to_the_engines(renders: Renders) -> None:
    """The component alone serves the API too."""
    assert set(_routes(renders["overlays/gpu + components/kong"])) == {
        ("/api", ENGINE, "api"),
        ("/", ENGINE, "web"),
    }


@pytest.mark.parametrize("peer", [THE_GATEWAY, PROMETHEUS], ids=["gateway", "Prometheus"])
def test_every_engine_is_open_to(peer: Peer, renders: Renders) -> None:
    """Engines under another name too: kustomize puts their label where a policy says "from"."""
    closed = {
        f"{name}, {pod.owner}"
        for name, objects in renders.items()
        for pod in pods(objects)
        if pod.labels.get("app.kubernetes.io/component") == "engine" and pod.has_port("api")
        if not _is_admitted(peer, "api", pod, objects)
    }

    assert closed == set()


def test_who_asks_the_api_server_reaches_it_behind_any_port(renders: Renders) -> None:
    """Some judge policies by the translated address: kubeadm's port is 6443, minikube's 8443."""
    shut = {
        f"{name}: {pod.owner}"
        for name, objects in renders.items()
        for pod in pods(objects)
        if pod.spec.get("serviceAccountName") in TALK_TO_THE_API_SERVER
        if not {443, 6443, 8443} <= _ports_to_anywhere(pod, objects)
    }

    assert shut == set()


def _ports_to_anywhere(pod: Pod, objects: Sequence[Object]) -> set[int]:
    return {
        port["port"]
        for policy in of_kind(objects, "NetworkPolicy")
        if matches(policy["spec"]["podSelector"], pod.labels)
        for rule in policy["spec"].get("egress", ())
        if "to" not in rule
        for port in rule["ports"]
    }


def _is_admitted(peer: Peer, port: str, pod: Pod, objects: Sequence[Object]) -> bool:
    """Does some policy of the pod's let the peer in?"""
    return any(
        _is_peer(one, peer)
        for policy in of_kind(objects, "NetworkPolicy")
        if matches(policy["spec"]["podSelector"], pod.labels)
        for rule in policy["spec"].get("ingress", ())
        if port in (there["port"] for there in rule.get("ports", ({"port": port},)))
        for one in rule.get("from", ({},))
    )


def _is_peer(one: Mapping[str, Any], peer: Peer) -> bool:
    namespace, labels = peer
    if "namespaceSelector" in one:
        is_there = matches(one["namespaceSelector"], {"kubernetes.io/metadata.name": namespace})
    else:
        is_there = namespace == NAMESPACE or "podSelector" not in one
    return is_there and matches(one.get("podSelector", {}), labels)


def _routes(objects: Sequence[Object]) -> Iterator[tuple[str, str, str | int]]:
    """(path, who has the pods, their port) of all Ingresses."""
    services = {one["metadata"]["name"]: one["spec"] for one in of_kind(objects, "Service")}
    for ingress in of_kind(objects, "Ingress"):
        for rule in ingress["spec"]["rules"]:
            for path in rule["http"]["paths"]:
                backend = path["backend"]["service"]
                service = services[backend["name"]]
                (port,) = (
                    one for one in service["ports"] if one["name"] == backend["port"]["name"]
                )
                for pod in pods(objects):
                    if matches(service["selector"], pod.labels):
                        yield path["path"], pod.owner, port["targetPort"]
