"""docker/build-and-push.sh against engines and an `aws` that only write down what they are told."""

from __future__ import annotations

import subprocess
from pathlib import Path
from typing import Any

import pytest

from tgwui_k8s import __version__

SCRIPT = "docker/build-and-push.sh"
ECR = "123456789012.dkr.ecr.eu-central-1.amazonaws.com"
NAME = f"{ECR}/text-generation-webui"

FAKE_AWS = """#!/bin/sh
echo "aws $*" >>"$CALLS"
case "$*" in
  "configure get region"*) echo eu-central-1 ;;
  "sts get-caller-identity"*) echo 123456789012 ;;
  "ecr get-login-password"*) echo secret ;;
  "ecr describe-repositories"*) [ -e "$STATE/repository" ] ;;
  "ecr create-repository"*) touch "$STATE/repository" ;;
  "ecr describe-images"*)
    tag=$(echo "$*" | sed 's/.*imageTag=\\([^ ]*\\).*/\\1/')
    [ -e "$STATE/$tag" ] && echo sha256:there || exit 254 ;;
  *) exit 1 ;;
esac
"""
FAKE_ENGINE = """#!/bin/sh
echo "$(basename "$0") $*" >>"$CALLS"
for image; do :; done
case "$1" in
  login) cat >>"$CALLS" ;;
  push)
    if [ -e "$STATE/immutable-${image##*:}" ]; then exit 1; fi
    touch "$STATE/${image##*:}"
    [ "$2" = --digestfile ] && echo "sha256:pushed" >"$3" ; true ;;
  inspect) echo "${4%:*}@sha256:pushed" ;;
esac
"""


class Machine:
    """A PATH with the programs that are installed, and what they were told."""

    def __init__(self, folder: Path, *programs: str) -> None:
        self.state = folder / "state"
        self.state.mkdir()
        self._calls = folder / "calls"
        self._bin = folder / "bin"
        self._bin.mkdir()
        for program in programs:
            path = self._bin / program
            path.write_text(FAKE_AWS if program == "aws" else FAKE_ENGINE)
            path.chmod(0o755)
        for program in ("bash", "sh", "git", "sed", "cat", "mktemp", "rm", "tr", "dirname", "touch",
                        "basename"):  # fmt: skip
            found = next(p for d in ("/usr/bin", "/bin") if (p := Path(d) / program).exists())
            (self._bin / program).symlink_to(found)

    def run(self, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
        """The script; `calls` has only this run's afterwards."""
        self._calls.write_text("")
        variables = {"PATH": str(self._bin), "CALLS": str(self._calls), "STATE": str(self.state)}
        return subprocess.run(
            [SCRIPT, *arguments], env=variables | environment, capture_output=True, text=True
        )

    @property
    def calls(self) -> list[str]:
        """One line per program run."""
        return self._calls.read_text().splitlines()


@pytest.fixture(name="make")
def _make(tmp_path: Path) -> Any:
    return lambda *programs: Machine(tmp_path, *programs)


@pytest.mark.parametrize("engine", ["docker", "podman", "buildah"])
def test_an_image_is_built_tagged_pushed_and_named_by_its_digest(make: Any, engine: str) -> None:
    """Region and account are found, the repository is made, and stdout is the digest."""
    machine = make("aws", engine)
    result = machine.run("--scan-on-push", "--immutable-tags", "--build-arg", "CUDA=12", "cuda")
    assert result.returncode == 0, result.stderr
    assert result.stdout == f"{NAME}@sha256:pushed\n"
    create = next(call for call in machine.calls if "create-repository" in call)
    assert "--image-scanning-configuration scanOnPush=true" in create
    assert "--image-tag-mutability IMMUTABLE" in create
    assert f"{engine} login --username AWS --password-stdin {ECR}" in machine.calls
    build = next(call for call in machine.calls if call.startswith(f"{engine} build"))
    assert "--file docker/Dockerfile.cuda" in build
    assert f"--tag {NAME}:{__version__}-cuda " in build
    assert "--build-arg CUDA=12" in build
    assert ("--format docker" in build) == (engine != "docker")
    pushed = [
        call.rpartition(":")[2] for call in machine.calls if call.startswith(f"{engine} push")
    ]
    assert pushed[1] == f"{__version__}-cuda"
    assert pushed[0].startswith(f"{__version__}-cuda-")


def test_a_second_run_makes_no_repository(make: Any) -> None:
    """And without arguments all images are built, in order."""
    machine = make("aws", "podman")
    machine.run("cpu")
    result = machine.run()
    assert not any("create-repository" in call for call in machine.calls)
    builds = [
        call.split("Dockerfile.")[1].split()[0] for call in machine.calls if " build " in call
    ]
    assert builds == ["cpu", "cuda", "neuron", "gateway"]
    assert len(result.stdout.splitlines()) == 4


def test_every_image_can_be_named(make: Any) -> None:
    """One for each Dockerfile, text-generation-webui's too, which overlays/upstream runs."""
    targets = [path.suffix[1:] for path in sorted(Path("docker").glob("Dockerfile.*"))]
    result = make("podman").run("--registry", "host/team", *targets)

    assert result.returncode == 0, result.stderr
    assert "upstream" in targets
    assert len(result.stdout.splitlines()) == len(targets)


def test_a_version_that_is_there_stays_where_tags_are_immutable(make: Any) -> None:
    """The revision's image goes up; the refusal is explained and no failure."""
    machine = make("aws", "podman")
    tag = f"{__version__}-cpu"
    (machine.state / tag).touch()
    (machine.state / f"immutable-{tag}").touch()
    result = machine.run("cpu")
    assert result.returncode == 0
    assert "tags are immutable" in result.stderr
    for pushed in machine.state.glob(f"{tag}*"):
        pushed.unlink()
    assert machine.run("cpu").returncode == 2, "a push that fails for another reason is a failure"


def test_a_dry_run_changes_nothing(make: Any) -> None:
    """It says what would be done; nothing is created, built, pushed or logged into."""
    machine = make("aws", "docker")
    result = machine.run("--dry-run", "cpu")
    assert result.returncode == 0
    assert result.stdout == ""
    assert "+ aws ecr create-repository" in result.stderr
    assert "+ docker build" in result.stderr
    assert "+ docker push" in result.stderr
    assert not any(call.startswith("docker") for call in machine.calls)
    assert list(machine.state.iterdir()) == []


def test_another_registry_needs_no_aws(make: Any) -> None:
    """The engine's own login counts, and options for the push get there."""
    machine = make("podman")
    result = machine.run(
        "--registry", "host/team", "--push-option", "--tls-verify=false", "gateway"
    )
    assert result.stdout == "host/team/text-generation-webui@sha256:pushed\n"
    assert all(" --tls-verify=false " in call for call in machine.calls if "push" in call)


@pytest.mark.parametrize(
    ("programs", "arguments", "message"),
    [
        ((), ("cpu",), "none of docker, podman and buildah"),
        (("docker",), ("cpu",), "the AWS command line is not installed"),
        (("docker",), ("tpu",), "unknown argument 'tpu'"),
        (("docker",), ("--region",), "--region wants a value"),
    ],
)
def test_what_is_missing_is_named(
    make: Any, programs: tuple[str, ...], arguments: tuple[str, ...], message: str
) -> None:
    """Before anything is built."""
    machine = make(*programs)
    result = machine.run(*arguments)
    assert result.returncode == 2
    assert message in result.stderr
    assert machine.calls == []
