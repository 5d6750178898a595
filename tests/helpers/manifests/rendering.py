"""`kubectl kustomize` over `k8s/`: overlays, components and examples as Kubernetes gets them."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).parents[3]
K8S = ROOT / "k8s"

Object = dict[str, Any]
"""One Kubernetes object, as in YAML."""

Loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


class RenderError(Exception):
    """kustomize refuses; its words."""


PARTS = {"common", "engine", "chat", "embeddings"}
"""Folders that are parts of the kustomization above them, or beside them."""


def kustomizations(folder: str) -> list[str]:
    """Paths below `k8s/` that can be applied or built upon, sorted: `overlays/cpu`, ..."""
    found = [path.parent for path in (K8S / folder).rglob("kustomization.yaml")]
    return sorted(str(path.relative_to(K8S)) for path in found if path.name not in PARTS)


def render(folder: Path) -> list[Object]:
    """The objects of a kustomization. Raises `RenderError`; skips where there is no kubectl."""
    kubectl = shutil.which("kubectl")
    if kubectl is None:
        pytest.skip("needs kubectl")
    done = subprocess.run([kubectl, "kustomize", folder], capture_output=True, text=True)
    if done.returncode:
        raise RenderError(done.stderr)
    return load_all(done.stdout)


def render_together(scratch: Path, overlay: str, components: Sequence[str]) -> list[Object]:
    """An overlay with components, as a user's own kustomization puts them together."""
    scratch.mkdir(parents=True)
    kustomization = {
        "apiVersion": "kustomize.config.k8s.io/v1beta1",
        "kind": "Kustomization",
        "resources": [os.path.relpath(K8S / overlay, scratch)],
        "components": [os.path.relpath(K8S / component, scratch) for component in components],
    }
    (scratch / "kustomization.yaml").write_text(yaml.safe_dump(kustomization))
    return render(scratch)


def load_all(text: str) -> list[Object]:
    """The documents of a YAML text."""
    return [document for document in yaml.load_all(text, Loader) if document]


def title(one: Object) -> str:
    """How findings name an object."""
    return f"{one['kind']} {one['metadata']['name']}"


def of_kind(objects: Sequence[Object], *kinds: str) -> list[Object]:
    """The objects of these kinds."""
    return [one for one in objects if one["kind"] in kinds]
