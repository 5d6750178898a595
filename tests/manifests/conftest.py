"""Renders of everything in `k8s/`, once for all tests; and the tools of `make manifests-test`."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.helpers.manifests.rendering import (
    K8S,
    Object,
    kustomizations,
    render,
    render_together,
)
from tests.helpers.server_process import PYTHON, ServerProcess

WITHOUT_OUR_ENGINE = (
    *("components/gateway", "components/gateway-redis", "components/karpenter"),
    "components/logging",
)
"""What can be put upon an overlay that runs vLLM instead."""

ADD_ONS = {
    "components/gateway-redis": "components/gateway",
    "components/keda": "components/gateway",
}
"""What changes another component."""

SENSELESS = {
    ("overlays/upstream", "components/kserve"),
    ("overlays/neuron", "components/gpu-pod"),
}
"""KServe's runtime is our engine, not text-generation-webui itself; no machine has both devices."""

NEED_THE_PLATFORM = ("models/", "examples/argo-workflows")
"""Applied after an overlay, which makes their namespace and claim."""

Tool = Callable[..., "subprocess.CompletedProcess[str]"]


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    """Run only when they are named, as `make manifests-test` does: they have tools of their own."""
    return None if any("tests/manifests" in argument for argument in config.args) else True


@pytest.fixture(name="renders", scope="session")
def _renders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[Object]]:
    """Every overlay, every overlay with every component, examples, Jobs; by name."""
    scratch = tmp_path_factory.mktemp("kustomizations")
    platform = render(K8S / "base/platform")
    alone = [
        *kustomizations("overlays"),
        *kustomizations("examples"),
        *kustomizations("models"),
    ]
    together = [
        (overlay, component)
        for overlay in kustomizations("overlays")
        for component in kustomizations("components")
        if ("vllm" not in overlay or component in WITHOUT_OUR_ENGINE)
        and (overlay, component) not in SENSELESS
    ]

    def one(name: str) -> list[Object]:
        objects = render(K8S / name)
        return [*platform, *objects] if name.startswith(NEED_THE_PLATFORM) else objects

    def two(pair: tuple[str, str]) -> list[Object]:
        overlay, component = pair
        needed = [ADD_ONS[component]] if component in ADD_ONS else []
        return render_together(scratch / f"{overlay}+{component}", overlay, [*needed, component])

    with ThreadPoolExecutor(max_workers=os.cpu_count()) as threads:
        found = dict(zip(alone, threads.map(one, alone), strict=True))
        names = [" + ".join(pair) for pair in together]
        return found | dict(zip(names, threads.map(two, together), strict=True))


@pytest.fixture(name="ingress_values", scope="session")
def _ingress_values() -> dict[str, Any]:
    """Helm values of what stands between the load balancer and us."""
    folder = K8S / "cluster/values"
    return {
        name: yaml.safe_load((folder / f"{name}.yaml").read_text())
        for name in ("kong", "istio-ingress")
    }


@pytest.fixture(name="tool", scope="session")
def _tool() -> Tool:
    """Runs a program of the environment that `make manifests-test` makes, or of the system."""

    def run(name: str, *arguments: str | Path) -> subprocess.CompletedProcess[str]:
        path = os.environ.get("MANIFEST_TOOLS", "") + os.pathsep + os.environ["PATH"]
        program = shutil.which(name, path=path)
        assert program, f"{name} is not installed: see .ci/packages and make manifests-test"
        return subprocess.run([program, *arguments], capture_output=True, text=True, timeout=120)

    return run


@pytest.fixture(name="server", scope="session")
def _server() -> Iterator[ServerProcess]:
    """A server of our own program, to ask which paths and metrics there are."""
    with ServerProcess("--metrics-compat", "vllm") as server:
        yield server.wait_until_ready()


class GatewayProcess(ServerProcess):
    """A gateway as a process of its own, in front of engines."""

    @staticmethod
    def command_line(*flags: str, options: object = None) -> list[str]:
        """The command that starts one on a free port."""
        return [PYTHON, "-m", "tgwui_k8s", "gateway", "--gateway-port", "0", *flags]


@pytest.fixture(name="gateway", scope="session")
def _gateway(server: ServerProcess) -> Iterator[ServerProcess]:
    """A gateway in front of `server`."""
    with GatewayProcess("--endpoint", server.url) as gateway:
        yield gateway.wait_until_ready()
