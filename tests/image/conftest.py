"""The image, built for real from a Debian base that is made here: no registry is needed.

These tests run only when they are named, as `make image-test` does: they take minutes.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.helpers.podman import Podman

BASE = "localhost/debian-base:bookworm"
IMAGE = "localhost/tgwui-k8s:cpu"
GATEWAY = "localhost/tgwui-k8s:gateway"

_BASE_TAR = Path("build/image-test/base.tar")
_PACKAGES = ("ca-certificates", "python3", "python3-venv")
_NEEDED = ("podman", "runc", "mmdebstrap")


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    """Leave these tests to who asks for them."""
    return None if any("tests/image" in argument for argument in config.args) else True


@pytest.fixture(scope="session")
def podman(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Podman]:
    """podman with an empty store."""
    missing = [program for program in _NEEDED if shutil.which(program) is None]
    if missing:
        pytest.skip(f"needs {' and '.join(missing)} (see .ci/packages)")
    if os.getuid() != 0:
        pytest.skip("needs root: containers with limits, and a base image by mmdebstrap")
    engine = Podman(tmp_path_factory.mktemp("podman"))
    yield engine
    engine.remove()


@pytest.fixture(scope="session")
def image(podman: Podman) -> str:
    """docker/Dockerfile.cpu without extras, or with those that IMAGE_EXTRAS names."""
    podman.run("import", str(_base_tar()), BASE)
    podman.build(
        "docker/Dockerfile.cpu",
        IMAGE,
        BASE_IMAGE=BASE,
        EXTRAS=os.environ.get("IMAGE_EXTRAS", ""),
        VERSION="1.2.3",
        REVISION="0123abc",
    )
    return IMAGE


@pytest.fixture(scope="session")
def gateway_image(podman: Podman, image: str) -> str:
    """docker/Dockerfile.gateway; after the other, which brings the base."""
    podman.build("docker/Dockerfile.gateway", GATEWAY, BASE_IMAGE=BASE)
    return GATEWAY


def _base_tar() -> Path:
    """A minimal Debian with Python, kept between runs."""
    if not _BASE_TAR.exists():
        _BASE_TAR.parent.mkdir(parents=True, exist_ok=True)
        unfinished = _BASE_TAR.with_suffix(".unfinished.tar")
        excluded = ("doc", "locale", "man")
        subprocess.run(
            [
                *("mmdebstrap", "--quiet", "--variant=minbase", f"--include={','.join(_PACKAGES)}"),
                *(f"--dpkgopt=path-exclude=/usr/share/{folder}/*" for folder in excluded),
                *("bookworm", str(unfinished)),
            ],
            check=True,
        )
        unfinished.rename(_BASE_TAR)
    return _BASE_TAR
