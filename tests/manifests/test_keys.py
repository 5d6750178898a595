"""Whose keys lie where: one entry of the Secret for each reader, and no reader sees another's."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import PurePosixPath
from typing import Any

import pytest

from tests.helpers.manifests.pods import Pod, pods
from tests.helpers.manifests.promises import environment, is_ours
from tests.helpers.manifests.rendering import Object

SECRET = "text-generation-webui-keys"

Renders = dict[str, list[Object]]


def test_the_gateway_has_keys_of_its_own(renders: Renders) -> None:
    """A structured key file of the gateway's must not become keys at the engines."""
    objects = renders["examples/production"]
    engine, gateway = (_pod(objects, name) for name in ("serve", "gateway"))

    assert _entries(engine, objects) == {"api-keys", "admin-keys"}
    assert _entries(gateway, objects) == {"gateway-keys", "admin-keys"}
    assert _variable(gateway, "TGWUI_ENDPOINT_API_KEY") == {"name": SECRET, "key": "endpoint-key"}


@pytest.mark.parametrize("name", ["examples/production", "overlays/gpu + components/kserve"])
def test_a_pod_mounts_the_entries_that_it_reads(name: str, renders: Renders) -> None:
    """And no other: an engine has nothing to do with the keys of the gateway's clients."""
    objects = renders[name]
    for pod in pods(objects):
        for volume in pod.spec.get("volumes", ()):
            if volume.get("secret", {}).get("secretName") == SECRET:
                mounted = {item["path"] for item in volume["secret"].get("items", ())}
                assert mounted == _entries(pod, objects), pod.owner


def _pod(objects: Sequence[Object], program: str) -> Pod:
    (found,) = (
        pod
        for pod in pods(objects)
        if any(is_ours(one) and one["args"][0] == program for one in pod.containers)
    )
    return found


def _entries(pod: Pod, objects: Sequence[Object]) -> set[str]:
    """The names of the files that its settings name."""
    (container,) = (one for one in pod.containers if is_ours(one))
    variables = environment(container, objects)
    files = (variables[f"TGWUI_{kind}_KEY_FILE"] for kind in ("API", "ADMIN"))
    return {PurePosixPath(file).name for file in files}


def _variable(pod: Pod, name: str) -> Mapping[str, Any]:
    (source,) = (
        one["valueFrom"]["secretKeyRef"] for one in pod.containers[0]["env"] if one["name"] == name
    )
    return dict(source)
