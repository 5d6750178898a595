"""The device plugins: installed once, and on the machines that have the devices."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import pytest
import yaml

from tests.helpers.manifests.pods import matches
from tests.helpers.manifests.rendering import K8S, load_all, of_kind

VALUES = K8S / "cluster/values"


def test_eksctl_leaves_the_device_plugins_to_helm() -> None:
    """It would install its own, whose objects Helm then refuses to take over."""
    (line,) = (
        line
        for line in (K8S / "cluster/install.sh").read_text().splitlines()
        if "eksctl create cluster" in line
    )

    assert "--install-neuron-plugin=false" in line
    assert "--install-nvidia-plugin=false" in line


@pytest.mark.parametrize("name", ["nvidia", "nvidia-shared"])
def test_nvidias_plugin_finds_the_machines_with_cards(name: str) -> None:
    """And none without: the chart's own affinity asks for labels that a feature discovery sets."""
    values = yaml.safe_load((VALUES / f"{name}.yaml").read_text())
    required = values["affinity"]["nodeAffinity"]["requiredDuringSchedulingIgnoredDuringExecution"]

    found = {
        machine
        for machine, labels in _machines()
        if any(matches(term, labels) for term in required["nodeSelectorTerms"])
    }

    assert found == {"NodePool gpu", "node group gpu"}


def _machines() -> Iterator[tuple[str, Mapping[str, str]]]:
    """Every kind of machine, with the labels that its nodes have."""
    (cluster,) = load_all((K8S / "cluster/cluster.yaml").read_text())
    for group in cluster["managedNodeGroups"]:
        yield f"node group {group['name']}", group.get("labels", {})
    for path in sorted((K8S / "components/karpenter").glob("*.yaml")):
        for pool in of_kind(load_all(path.read_text()), "NodePool"):
            yield f"NodePool {pool['metadata']['name']}", _labels_of_karpenter(pool)


def _labels_of_karpenter(pool: Mapping[str, Any]) -> Mapping[str, str]:
    """What Karpenter writes on a node: by the card that the pool's limits count."""
    has_gpu = "nvidia.com/gpu" in pool["spec"]["limits"]
    return {"karpenter.k8s.aws/instance-gpu-manufacturer": "nvidia"} if has_gpu else {}
