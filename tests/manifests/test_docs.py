"""docs/kubernetes.md and docs/operations.md say what the manifests say."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any

import yaml

from tests.helpers.manifests.drain import seconds
from tests.helpers.manifests.pods import pods
from tests.helpers.manifests.promises import environment
from tests.helpers.manifests.rendering import K8S, ROOT, Object, kustomizations, of_kind

PAGES = [ROOT / "docs/kubernetes.md", ROOT / "docs/operations.md"]

Renders = dict[str, list[Object]]


def test_the_drain_table_has_the_manifests_numbers(
    renders: Renders, ingress_values: Mapping[str, Any]
) -> None:
    """Each row of "The drain sum", read from what is rendered and installed."""
    section = PAGES[0].read_text().split("## The drain sum")[1].split("\n## ")[0]
    rows = re.findall(r"^\| ([^|]+) \| [^|]+ \| \**(\d+)[^|]* \|", section, re.MULTILINE)
    written = {name.strip("* "): float(number) for name, number in rows}

    objects = renders["examples/production"]
    engine = next(pod for pod in pods(objects) if pod.owner == "Deployment text-generation-webui")
    (container,) = engine.spec["containers"]
    variables = environment(container, objects)
    deployment = next(
        one
        for one in of_kind(objects, "Deployment")
        if one["metadata"]["name"] == "text-generation-webui"
    )
    service = next(
        one
        for one in of_kind(objects, "Service")
        if one["metadata"]["name"] == "text-generation-webui"
    )["metadata"]["annotations"]
    balancer = ingress_values["kong"]["gateway"]["proxy"]["annotations"]
    prefix = "service.beta.kubernetes.io/aws-load-balancer-"
    (meshed,) = {
        one["spec"]["template"]["metadata"]["annotations"]["proxy.istio.io/config"]
        for one in of_kind(renders["overlays/gpu + components/istio"], "Deployment")
    }
    (pool, *_) = of_kind(objects, "NodePool")

    assert written == {
        "longest answer": float(variables["TGWUI_MAX_REQUEST_SECONDS"]),
        "drain timeout": float(variables["TGWUI_DRAIN_TIMEOUT"]),
        "preStop": container["lifecycle"]["preStop"]["sleep"]["seconds"],
        "grace": engine.spec["terminationGracePeriodSeconds"],
        "Envoy's drain": seconds(yaml.safe_load(meshed)["terminationDrainDuration"]),
        "machine's grace": seconds(pool["spec"]["template"]["spec"]["terminationGracePeriod"]),
        "Kong's patience": int(service["konghq.com/read-timeout"]) / 1000,
        "Kong's repeats": int(service["konghq.com/retries"]),
        "load balancer: silence": _number(balancer[f"{prefix}listener-attributes.TCP-443"]),
        "load balancer: leaving": _number(balancer[f"{prefix}target-group-attributes"]),
        "ingress proxies' grace": ingress_values["kong"]["gateway"][
            "terminationGracePeriodSeconds"
        ],
        "mesh routes": 0,
        "roll-out's patience": deployment["spec"]["progressDeadlineSeconds"],
    }


def test_every_path_that_is_named_exists() -> None:
    """`k8s/...` and links to other pages, with their headings."""
    for page in PAGES:
        text = page.read_text()
        for path in re.findall(r"`((?:k8s|docker)/[\w./-]+)", text):
            assert (ROOT / path.rstrip("./")).exists(), f"{page.name}: {path}"
        for target, heading in re.findall(r"\]\(([\w.-]+\.md)?(?:#([\w-]+))?\)", text):
            other = page.parent / (target or page.name)
            assert other.exists(), f"{page.name}: {target}"
            assert not heading or heading in _headings(other.read_text()), f"{page.name}: {heading}"


def test_what_a_canary_is_watched_on_is_shown_by_version() -> None:
    """The panels that docs/kubernetes.md names have a line for each version."""
    dashboard = json.loads((K8S / "components/monitoring/dashboard.json").read_text())
    panels = {panel["title"]: panel for panel in dashboard["panels"]}
    (canary,) = re.findall(r"\*\*Canary:\*\*.+?\n\n", PAGES[0].read_text(), re.DOTALL)
    named = [title.replace("\n", " ") for title in re.findall(r"(?<!\*)\*([^*]+)\*(?!\*)", canary)]

    assert len(named) == 3
    for title in named:
        for target in panels[title]["targets"]:
            assert "group_left (version)" in target["expr"], title
            assert "{{version}}" in target["legendFormat"], title


def test_every_component_and_overlay_is_explained() -> None:
    """Nobody has to find them by listing folders."""
    text = PAGES[0].read_text()
    names = [
        path.split("/")[1] for path in (*kustomizations("components"), *kustomizations("overlays"))
    ]

    assert [name for name in names if name not in text] == []


def _headings(text: str) -> set[str]:
    """As the anchors of their links."""
    titles = re.findall(r"^#+ (.+)$", text, re.MULTILINE)
    return {re.sub(r"[^\w -]", "", title).lower().replace(" ", "-") for title in titles}


def _number(attributes: str) -> float:
    found = re.search(r"seconds=(\d+)", attributes)
    assert found
    return float(found[1])
