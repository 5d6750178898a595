"""Containers for real: podman with a store of its own, so that nothing of the user's is touched."""

from __future__ import annotations

import json
import shutil
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx

TIMEOUT_SECONDS = 60.0
"""Generous: nothing here measures time."""

HARDENED = (
    *("--read-only", "--read-only-tmpfs=false", "--tmpfs", "/tmp:rw,size=64m,mode=1777"),
    *("--cap-drop", "ALL", "--security-opt", "no-new-privileges", "--pids-limit", "200"),
)
"""What k8s/base asks of a pod, in podman's words."""

_SETTINGS = """\
[containers]
# podman's own limits are above what a machine without CAP_SYS_RESOURCE allows.
default_ulimits = ["nofile=20000:20000", "nproc=32768:32768"]
[engine]
# crun refuses cgroups of version 1.
runtime = "runc"
cgroup_manager = "cgroupfs"
[network]
network_backend = "netavark"
"""
_HOST_FILES = ("/etc/ssl/certs/ca-certificates.crt", "/etc/pip.conf")
"""How this machine reaches its package indexes; a build in it must do so, too."""


class Podman:
    """podman on a store below `folder`."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        folder.mkdir(parents=True, exist_ok=True)
        self._settings = folder / "containers.conf"
        self._settings.write_text(_SETTINGS)
        self.store = ("--root", str(folder / "store"), "--runroot", str(folder / "run"))
        self.environment = {
            "PATH": "/usr/sbin:/usr/bin:/sbin:/bin",
            "HOME": str(folder),
            "CONTAINERS_CONF": str(self._settings),
        }

    def run(self, *arguments: str, check: bool = True) -> subprocess.CompletedProcess[str]:
        """One podman command; a failure raises with all that it wrote."""
        result = subprocess.run(
            ["podman", *self.store, *arguments],
            env=self.environment,
            capture_output=True,
            text=True,
            check=False,
        )
        if check and result.returncode != 0:
            raise AssertionError(f"podman {arguments[0]}: {result.stdout}\n{result.stderr}"[-4000:])
        return result

    def build(self, dockerfile: str, tag: str, **arguments: str) -> None:
        """Build an image from this repository."""
        files = [file for file in _HOST_FILES if Path(file).exists()]
        self.run(
            *("build", "--quiet", "--format", "docker", "--file", dockerfile, "--tag", tag),
            *(f"--volume={file}:{file}:ro" for file in files),
            *(f"--build-arg={name}={value}" for name, value in arguments.items()),
            ".",
        )

    def inspect(self, name: str) -> dict[str, Any]:
        """What podman knows of an image or container."""
        found: list[dict[str, Any]] = json.loads(self.run("inspect", name).stdout)
        return found[0]

    def remove(self) -> None:
        """All containers, all images and the store."""
        self.run("rm", "--all", "--force", "--time", "0", check=False)
        self.run("rmi", "--all", "--force", check=False)
        subprocess.run(["umount", self._folder / "store" / "overlay"], capture_output=True)
        shutil.rmtree(self._folder, ignore_errors=True)


class Container:
    """A running container, as a context manager that leaves nothing."""

    def __init__(self, podman: Podman, image: str, *command: str, options: tuple[str, ...]) -> None:
        self._podman = podman
        result = podman.run("run", "--detach", *options, image, *command)
        self.id = result.stdout.strip().splitlines()[-1]

    def __enter__(self) -> Container:
        return self

    def __exit__(self, *exception: object) -> None:
        self._podman.run("rm", "--force", "--time", "0", self.id, check=False)

    @property
    def url(self) -> str:
        """Where its port 5000 can be reached from here."""
        address = self._podman.run("port", self.id, "5000/tcp").stdout.split()[0]
        return f"http://{address}"

    @property
    def state(self) -> dict[str, Any]:
        """`Running`, `ExitCode`, ..."""
        state: dict[str, Any] = self._podman.inspect(self.id)["State"]
        return state

    def execute(self, *command: str) -> str:
        """What a command inside writes."""
        return self._podman.run("exec", self.id, *command).stdout

    def try_to_execute(self, *command: str) -> int:
        """The exit code of a command inside."""
        return self._podman.run("exec", self.id, *command, check=False).returncode

    def stop(self, seconds: int) -> None:
        """SIGTERM, and SIGKILL after so many seconds."""
        self._podman.run("stop", "--time", str(seconds), self.id)

    def log_lines(self) -> list[dict[str, Any]]:
        """Every line it has written, each of which must be JSON."""
        logs = self._podman.run("logs", self.id)
        return [json.loads(line) for line in (logs.stdout + logs.stderr).splitlines()]

    def changed_paths(self) -> list[str]:
        """What differs from the image; the places podman itself mounts something on left out."""
        lines = self._podman.run("diff", self.id).stdout.splitlines()
        return [line for line in lines if line.split()[1] not in ("/etc", "/run", "/dev", "/proc")]

    def wait_until_ready(self) -> None:
        """Until /health/ready says so."""

        def is_ready() -> bool:
            try:
                return httpx.get(f"{self.url}/health/ready", trust_env=False).is_success
            except httpx.TransportError:
                return False

        self.wait_until(is_ready)

    def wait_until(self, condition: Callable[[], bool]) -> None:
        """Until `condition` holds; fails with the log when the container ends or time runs out."""
        deadline = time.monotonic() + TIMEOUT_SECONDS
        while not condition():
            if not self.state["Running"] or time.monotonic() > deadline:
                raise AssertionError(self._podman.run("logs", self.id))
            time.sleep(0.2)
