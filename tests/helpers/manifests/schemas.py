"""Schemas of custom resources, in a shorthand of one line a field; see tests/manifests/schemas.

    weight: integer              a field of that type
    name!: string                a field that must be there
    policy: A | B                one of these words
    taints: [{key!: string}]     a list of such
    limits: {"*": quantity}      any names, such values
    spec: pod                    a Kubernetes PodSpec: checked by kubernetes-validate, as a Pod

Fields that are not written down are refused, so that a typing error cannot pass.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import jsonschema
import yaml

from tests.helpers.manifests.rendering import Object, title

FOLDER = Path(__file__).parents[2] / "manifests" / "schemas"

TYPES: dict[str, Any] = {
    "string": {"type": "string", "minLength": 1},
    "integer": {"type": "integer"},
    "number": {"type": "number"},
    "boolean": {"type": "boolean"},
    "port": {"type": "integer", "minimum": 1, "maximum": 65535},
    "duration": {"type": "string", "pattern": r"^([0-9]+(ms|s|m|h))+$"},
    "quantity": {
        "type": ["string", "integer"],
        "pattern": r"^[0-9]+(\.[0-9]+)?(m|k|Ki|M|Mi|G|Gi|T|Ti)?$",
    },
    "any": {},
    "pod": {"type": "object"},
}

CORE_GROUPS = {
    "v1",
    "apps/v1",
    "autoscaling/v2",
    "batch/v1",
    "networking.k8s.io/v1",
    "policy/v1",
    "rbac.authorization.k8s.io/v1",
    "scheduling.k8s.io/v1",
    "storage.k8s.io/v1",
}
"""What kubernetes-validate knows."""


def custom_resource_problems(objects: Sequence[Object]) -> list[str]:
    """Custom resources that their schema refuses, or that have none."""
    findings = []
    for one in objects:
        if one["apiVersion"] in CORE_GROUPS:
            continue
        known = schemas().get((one["apiVersion"], one["kind"]))
        if known is None:
            findings.append(f"{title(one)}: no schema for {one['apiVersion']} {one['kind']}")
            continue
        if known["is_namespaced"] != ("namespace" in one["metadata"]):
            findings.append(
                f"{title(one)}: a namespace belongs to namespaced kinds, and only there"
            )
        for error in known["validator"].iter_errors(one):
            where = ".".join(map(str, error.absolute_path))
            findings.append(f"{title(one)}: {where}: {error.message}")
    return findings


def embedded_pods(objects: Sequence[Object]) -> list[Object]:
    """Pods inside custom resources, as objects that kubernetes-validate can check."""
    found = []
    for one in objects:
        known = schemas().get((one["apiVersion"], one["kind"]))
        for number, spec in enumerate(_pod_specs(known["shape"], one) if known else ()):
            # KServe and Argo have no names for their containers.
            metadata = {"name": f"{one['metadata']['name']}-{number}"}
            found.append({"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": spec})
    return found


@cache
def schemas() -> dict[tuple[str, str], dict[str, Any]]:
    """By API version and kind."""
    found = {}
    for path in sorted(FOLDER.glob("*.yaml")):
        for document in yaml.safe_load_all(path.read_text()):
            shape = document["fields"]
            whole = translate(shape)
            whole["properties"] |= {"apiVersion": {}, "kind": {}, "metadata": {}}
            found[document["apiVersion"], document["kind"]] = {
                "validator": jsonschema.Draft202012Validator(whole),
                "is_namespaced": document["scope"] == "Namespaced",
                "shape": shape,
            }
    return found


def translate(shape: Any) -> dict[str, Any]:
    """The shorthand as JSON Schema."""
    if isinstance(shape, str):
        if shape in TYPES:
            return dict(TYPES[shape])
        return {"enum": [word.strip() for word in shape.split("|")]}
    if isinstance(shape, list):
        return {"type": "array", "minItems": 1, "items": translate(shape[0])}
    if "*" in shape:
        return {"type": "object", "additionalProperties": translate(shape["*"])}
    return {
        "type": "object",
        "properties": {name.rstrip("!"): translate(inner) for name, inner in shape.items()},
        "required": [name.rstrip("!") for name in shape if name.endswith("!")],
        "additionalProperties": False,
    }


def _pod_specs(shape: Any, value: Any) -> Iterator[Mapping[str, Any]]:
    """Where the shape says `pod`."""
    if shape == "pod":
        yield value
    elif isinstance(shape, list):
        for item in value:
            yield from _pod_specs(shape[0], item)
    elif isinstance(shape, Mapping):
        for name, inner in shape.items():
            if name.rstrip("!") in value:
                yield from _pod_specs(inner, value[name.rstrip("!")])
