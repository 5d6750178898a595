"""What lies in docker/, without an engine: linters, locks, compose files."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from packaging.requirements import Requirement

from tgwui_k8s import __version__
from tgwui_k8s.setting_field import setting_fields

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

DOCKER = Path("docker")
DOCKERFILES = sorted(DOCKER.glob("Dockerfile.*"))
OURS = [path for path in DOCKERFILES if path.suffix != ".upstream"]
"""Images with this package's own server; the other one runs text-generation-webui's."""
COMPOSE = sorted(DOCKER.glob("compose.*.yaml"))
LOCKS = sorted(path for path in (DOCKER / "locks").glob("*.txt") if path.stem != "build")
SCRIPTS = [*sorted(DOCKER.glob("*.sh")), Path(".ci/run")]


def tool(name: str) -> str:
    """A linter of the `dev` group, beside this interpreter."""
    found = shutil.which(name, path=f"{Path(sys.executable).parent}:/usr/bin:/bin")
    assert found is not None, f"{name} is not installed: make test installs it"
    return found


@pytest.mark.parametrize("path", DOCKERFILES, ids=str)
def test_hadolint_has_nothing_to_say(path: Path) -> None:
    """What is ignored is ignored in the file, one instruction at a time."""
    result = subprocess.run([tool("hadolint"), "--no-color", path], capture_output=True, text=True)
    assert result.returncode == 0, result.stdout


def test_shellcheck_has_nothing_to_say() -> None:
    """For every script that builds or checks."""
    result = subprocess.run([tool("shellcheck"), *SCRIPTS], capture_output=True, text=True)
    assert result.returncode == 0, result.stdout


def locked(path: Path) -> dict[str, str]:
    """Name to version; every one must have hashes."""
    versions = {}
    for block in re.split(r"\n(?=\S)", path.read_text(encoding="utf-8")):
        if matched := re.match(r"([\w.-]+)==(\S+)", block):
            assert "--hash=sha256:" in block, f"{matched[1]} has no hash in {path}"
            versions[matched[1].lower().replace("_", "-")] = matched[2]
    return versions


@pytest.mark.parametrize("path", LOCKS, ids=str)
def test_locks_hold_what_the_package_asks_for(path: Path) -> None:
    """Each dependency of the core and of the lock's extras, in a version that is allowed."""
    target, *extras = path.stem.split("-")
    project = tomllib.loads(Path("pyproject.toml").read_text(encoding="utf-8"))["project"]
    wanted = [] if target == "gateway" else list(project["dependencies"])
    for extra in extras:
        wanted += project["optional-dependencies"][extra]
    versions = locked(path)
    for requirement in map(Requirement, wanted):
        if target == "neuron" and requirement.name == "numpy":
            continue  # the Neuron image's own
        assert requirement.specifier.contains(versions[requirement.name.lower()]), requirement


@pytest.mark.parametrize("index", ["https://wheels.example.com/cpu", ""])
def test_all_locks_are_made_again_at_once(index: str, tmp_path: Path) -> None:
    """By a uv that only says what it was to write; torch for CPUs needs its own index."""
    uv = tmp_path / "uv"
    uv.write_text('#!/bin/sh\necho "$*" >>"$CALLS"\n')
    uv.chmod(0o755)
    variables = {"PATH": f"{tmp_path}:/usr/bin:/bin", "CALLS": str(tmp_path / "calls")}
    done = subprocess.run(
        ["docker/lock.sh"], env={**variables, "TORCH_INDEX": index}, capture_output=True, text=True
    )

    assert done.returncode == 0, done.stderr
    made = re.findall(r"--output-file docker/locks/(\S+)", (tmp_path / "calls").read_text())
    left = [] if index else ["cpu-transformers-s3-ui.txt"]
    assert sorted([*made, *left]) == sorted(path.name for path in (DOCKER / "locks").iterdir())
    assert all(name in done.stderr for name in left)


@pytest.mark.parametrize("path", OURS, ids=str)
def test_there_is_a_lock_for_what_is_built_by_default(path: Path) -> None:
    """Nobody has to resolve anything to build an image."""
    text = path.read_text(encoding="utf-8")
    extras = re.search(r'ARG EXTRAS="(.*)"', text)
    cuda = re.search(r"ARG CUDA=(\d+)", text)
    name = path.suffix[1:] + (cuda[1] if cuda else "")
    if extras and extras[1]:
        name += "-" + extras[1].replace(",", "-")
    assert (DOCKER / "locks" / f"{name}.txt").exists()


@pytest.mark.parametrize("path", OURS, ids=str)
def test_images_are_alike_where_they_should_be(path: Path) -> None:
    """User, stop signal, entry point, health check; settings in ENV are settings there are."""
    text = path.read_text(encoding="utf-8")
    for line in (
        "USER 6972:6972",
        "STOPSIGNAL SIGTERM",
        'ENTRYPOINT ["tgwui-k8s"]',
        "WORKDIR /home/app/text-generation-webui",
    ):
        assert f"\n{line}\n" in text
    assert "HEALTHCHECK" in text
    known = {field.variable for field in setting_fields().values()}
    assert set(re.findall(r"\b(TGWUI_[A-Z_]+)=", text)) <= known


@pytest.mark.parametrize("path", COMPOSE, ids=str)
def test_compose_files_ask_for_what_the_images_can_do(path: Path) -> None:
    """Of this version, hardened, with models read-only and time to drain."""
    services: dict[str, Any] = yaml.safe_load(path.read_text(encoding="utf-8"))["services"]
    engine = services["engine"]
    dockerfile = Path(engine["build"]["dockerfile"])
    assert dockerfile in DOCKERFILES
    assert engine["image"] == f"text-generation-webui:{__version__}-{dockerfile.suffix[1:]}"
    assert engine["read_only"] is True
    assert engine["cap_drop"] == ["ALL"]
    assert engine["volumes"][0].endswith(":/home/app/text-generation-webui/models:ro")
    drain_seconds = setting_fields()["drain_timeout"].default
    assert int(engine["stop_grace_period"].rstrip("s")) > drain_seconds
    known = {field.variable for field in setting_fields().values()}
    assert set(engine["environment"]) <= known


def test_only_what_is_built_from_gets_to_the_engine() -> None:
    """Everything is left out but what a Dockerfile copies."""
    lines = [
        line
        for line in Path(".dockerignore").read_text(encoding="utf-8").splitlines()
        if not line.startswith("#")
    ]
    assert lines[0] == "*"
    kept = [line.removeprefix("!") for line in lines if line.startswith("!")]
    assert not {"models", ".git", ".venv", "tests", "build"} & set(kept)
    for path in DOCKERFILES:
        for copied in re.findall(r"^COPY (?!--from)(.+) \S+$", path.read_text(), re.MULTILINE):
            for source in copied.split():
                assert any(
                    Path(source).match(pattern) or source.rstrip("/") == pattern for pattern in kept
                ), source
