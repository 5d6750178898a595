"""docker/build-and-push.sh with podman and a registry, both real."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from tests.helpers.podman import Podman
from tests.helpers.server_process import wait_until
from tests.image.conftest import BASE
from tgwui_k8s import __version__

pytestmark = pytest.mark.timeout(1800)
NAME = "team/text-generation-webui"


@pytest.fixture(name="registry")
def _registry(tmp_path: Path) -> Iterator[str]:
    """Docker's registry on a free port."""
    if shutil.which("docker-registry") is None:
        pytest.skip("needs docker-registry (see .ci/packages)")
    with socket.create_server(("127.0.0.1", 0)) as listener:
        address = f"127.0.0.1:{listener.getsockname()[1]}"
    config = tmp_path / "registry.yml"
    config.write_text(
        f"version: 0.1\nhttp: {{addr: '{address}'}}\n"
        f"storage: {{filesystem: {{rootdirectory: '{tmp_path / 'registry'}'}}}}\n"
    )
    process = subprocess.Popen(
        ["docker-registry", "serve", config], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    try:
        wait_until(lambda: _answers(address))
        yield address
    finally:
        process.kill()
        process.wait()


def _answers(address: str) -> bool:
    try:
        return httpx.get(f"http://{address}/v2/", trust_env=False).is_success
    except httpx.TransportError:
        return False


def test_what_is_pushed_is_what_the_registry_has(
    podman: Podman, gateway_image: str, registry: str, tmp_path: Path
) -> None:
    """Both tags are there, under the digest that the script prints; a second run says the same."""
    wrapper = tmp_path / "bin" / "podman"
    wrapper.parent.mkdir()
    program, store = shutil.which("podman"), " ".join(podman.store)
    wrapper.write_text(f'#!/bin/sh\nexec {program} {store} "$@"\n')
    wrapper.chmod(0o755)
    command = [
        *("docker/build-and-push.sh", "--engine", "podman", "--registry", f"{registry}/team"),
        *("--push-option", "--tls-verify=false", "--build-arg", f"BASE_IMAGE={BASE}", "gateway"),
    ]
    path = f"{wrapper.parent}:{os.environ['PATH']}"
    environment = {**podman.environment, "PATH": path}
    outputs = [
        subprocess.run(command, env=environment, check=True, capture_output=True, text=True).stdout
        for _ in range(2)
    ]
    assert outputs[0] == outputs[1]
    name, _, digest = outputs[0].strip().partition("@")
    assert name == f"{registry}/{NAME}"
    tags = httpx.get(f"http://{registry}/v2/{NAME}/tags/list", trust_env=False).json()["tags"]
    assert len(tags) == 2
    assert f"{__version__}-gateway" in tags
    for tag in tags:
        found = httpx.head(
            f"http://{registry}/v2/{NAME}/manifests/{tag}",
            headers={"accept": "application/vnd.docker.distribution.manifest.v2+json"},
            trust_env=False,
        )
        assert found.headers["docker-content-digest"] == digest
