"""`install.sh` and `create-keys.sh`: what they run, with recorders instead of all programs."""

from __future__ import annotations

import base64
import os
import re
import subprocess
from pathlib import Path

import pytest

from tests.helpers.manifests.rendering import K8S, load_all
from tests.helpers.manifests.schemas import custom_resource_problems
from tests.manifests.conftest import Tool

INSTALL = K8S / "cluster/install.sh"
CREATE_KEYS = K8S / "create-keys.sh"
PROGRAMS = ("aws", "curl", "eksctl", "helm", "kubectl")

READS = re.compile(r"aws (\S+ )?(describe-|get-caller-identity|head-bucket|get region)|aws sts")
"""Commands that change nothing."""

RECORDER = """#!/bin/sh
# Writes the command down, keeps the files that it names, and answers as told: "part|code|words".
line="${0##*/} $*"
printf '%s\\n' "$line" >>"$RECORD"
for word in "$@"; do
  case $word in
    /* | --from-file=*)
      file=${word##*=}
      if [ -f "$file" ] || [ -p "$file" ]; then { cat "$file"; echo; } >>"$RECORD.files"; fi ;;
  esac
done
while IFS='|' read -r part code says; do
  case $line in *"$part"*) [ -z "$says" ] || printf '%b\\n' "$says"; exit "$code" ;; esac
done <"$RECORD.answers"
exit 0
"""


class Machine:
    """Where the scripts run: recorders instead of programs, which answer as told."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        for program in PROGRAMS:
            path = folder / program
            path.write_text(RECORDER)
            path.chmod(0o755)
        self._record = folder / "record"

    def run(
        self, script: Path, *arguments: str, answers: dict[str, tuple[int, str]] | None = None
    ) -> tuple[subprocess.CompletedProcess[str], list[str]]:
        """Run a script; what it said, and what it ran. `answers`: by a part of a command."""
        self._record.write_text("")
        Path(f"{self._record}.answers").write_text(
            "".join(f"{part}|{code}|{says}\n" for part, (code, says) in (answers or {}).items())
        )
        environment = {
            "PATH": f"{self._folder}{os.pathsep}{os.environ['PATH']}",
            "RECORD": str(self._record),
            "ACCOUNT": "111122223333",
            "REGION": "us-west-2",
        }
        done = subprocess.run(
            [script, *arguments], capture_output=True, text=True, env=environment, timeout=120
        )
        return done, self._record.read_text().splitlines()

    @property
    def files(self) -> str:
        """The contents of all files that the commands named."""
        return Path(f"{self._record}.files").read_text()


@pytest.fixture(name="machine")
def _machine(tmp_path: Path) -> Machine:
    return Machine(tmp_path)


NOTHING_THERE = {
    "aws eks describe-cluster": (1, ""),
    "aws efs describe-file-systems": (0, "None"),
    "aws ec2 describe-security-groups": (0, "None"),
    "aws efs describe-mount-targets": (0, ""),
    "aws ec2 describe-subnets": (0, "subnet-1 usw2-az1\\nsubnet-2 usw2-az1\\nsubnet-3 usw2-az2"),
    "aws s3api head-bucket": (1, ""),
    "kubectl get": (1, ""),
}

ALL_THERE = {
    "aws eks describe-cluster": (0, "vpc-1"),
    "aws efs describe-file-systems": (0, "fs-1"),
    "aws ec2 describe-security-groups": (0, "sg-1"),
    "aws efs describe-mount-targets": (0, "usw2-az1 usw2-az2"),
    "aws ec2 describe-subnets": (0, "subnet-1 usw2-az1\\nsubnet-3 usw2-az2"),
    "jsonpath={.data.": (0, "c2stMQo="),
}


@pytest.mark.parametrize("script", [INSTALL, CREATE_KEYS])
def test_shellcheck_finds_nothing(script: Path, tool: Tool) -> None:
    """Not a hint."""
    done = tool("shellcheck", script)

    assert done.stdout + done.stderr == ""


def test_dry_run_changes_nothing_and_shows_all(machine: Machine) -> None:
    """It only asks, and prints a line for every command that a real run would run."""
    done, record = machine.run(INSTALL, "--dry-run", answers=NOTHING_THERE)

    assert done.returncode == 0, done.stderr
    assert [line for line in record if not READS.search(line)] == []
    shown = [line for line in done.stdout.splitlines() if line.startswith("+ ")]
    assert any(line.startswith("+ eksctl create cluster") for line in shown)
    assert sum(line.startswith("+ helm upgrade --install") for line in shown) == 9


def test_every_step_runs(machine: Machine) -> None:
    """All of --list, with pinned versions and values that exist; no blank is left."""
    listed, _ = machine.run(INSTALL, "--list")
    steps = [line.split()[0] for line in listed.stdout.splitlines()]

    done, record = machine.run(INSTALL, *steps, answers=ALL_THERE)

    assert done.returncode == 0, done.stderr
    releases = [line for line in record if line.startswith("helm ")]
    assert len(releases) >= 20
    assert all(re.search(r"--version v?\d+\.\d+\.\d+( |$)", line) for line in releases)
    left = re.findall(r"^[^#\n]*\b(?:ACCOUNT|REGION|BUCKET|FILE_SYSTEM)\b.*$", machine.files, re.M)
    assert left == []


def test_values_files_are_used(machine: Machine) -> None:
    """No file in values/ that no step installs."""
    text = INSTALL.read_text()

    assert [path for path in (K8S / "cluster/values").iterdir() if path.name not in text] == []


def test_what_is_there_is_not_made_again(machine: Machine) -> None:
    """A second run creates nothing; it brings Helm releases to the version, and applies."""
    _, record = machine.run(INSTALL, "cluster", "storage", "logging", "keys", answers=ALL_THERE)

    made = [
        line
        for line in record
        if re.search(r"create-(?!namespace)|create cluster| mb |authorize", line)
    ]
    assert made == []


def test_file_system_has_one_mount_target_a_zone(machine: Machine) -> None:
    """Two subnets in one zone get one; the file system is encrypted and elastic."""
    done, record = machine.run(INSTALL, "--dry-run", "storage", answers=NOTHING_THERE)

    assert done.stdout.count("create-mount-target") == 2
    assert "--throughput-mode elastic" in done.stdout
    assert "--encrypted" in done.stdout
    assert record


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("nonsense",), "no step 'nonsense'"),
        (("--skip", "konk"), "no step 'konk'"),
        (("-x",), "-x"),
    ],
)
def test_wrong_usage_says_so(arguments: tuple[str, ...], words: str, machine: Machine) -> None:
    """Before anything is run."""
    done, record = machine.run(INSTALL, *arguments)

    assert (done.returncode, record) == (2, [])
    assert words in done.stderr


def test_skipped_steps_are_skipped(machine: Machine) -> None:
    """--skip takes them out of the default list."""
    done, _ = machine.run(INSTALL, "--dry-run", "--skip", "kong,logging", answers=NOTHING_THERE)

    steps = re.findall(r"^=== (\S+)$", done.stdout, re.MULTILINE)
    assert "cluster" in steps
    assert not {"kong", "logging"} & set(steps)


def test_keys_are_made_once_and_show_nowhere(machine: Machine) -> None:
    """Not among the arguments, one entry for each reader; and none where the Secret is there."""
    done, record = machine.run(CREATE_KEYS, answers={"kubectl get": (1, "")})
    again, nothing = machine.run(CREATE_KEYS, answers={"kubectl get": (0, "c2stMQo=")})

    created = record[-1]
    assert done.returncode == 0
    assert "create secret generic text-generation-webui-keys" in created
    assert re.findall(r"--from-file=([\w-]+)=", created) == [
        *("gateway-keys", "api-keys", "endpoint-key", "admin-keys")
    ]
    assert "sk-" not in created + done.stdout
    client, *at_engines, endpoint, admin = machine.files.split()
    # text-generation-webui itself takes the first alone.
    assert at_engines == [endpoint, client]
    assert len({client, endpoint, admin}) == 3
    assert all(line.startswith("kubectl get") for line in nothing)
    assert "nothing changed" in again.stdout


def test_an_old_secret_gets_what_it_lacks(machine: Machine) -> None:
    """One with api-keys alone goes on working: the gateway's clients keep their keys."""
    keys = _encoded("sk-first\nsk-second\n")
    done, record = machine.run(CREATE_KEYS, answers={"data.api-keys": (0, keys)})

    assert done.returncode == 0, done.stderr
    (change,) = (line for line in record if not line.startswith("kubectl get"))
    assert change.startswith("kubectl patch secret text-generation-webui-keys")
    assert f'"gateway-keys": "{keys}"' in machine.files
    assert f'"endpoint-key": "{_encoded("sk-first")}"' in machine.files
    assert keys not in "".join(record)


def test_what_an_old_secret_has_is_left(machine: Machine) -> None:
    """Somebody's own gateway-keys are not overwritten."""
    answers = {
        "data.api-keys": (0, _encoded("sk-first\n")),
        "data.gateway-keys": (0, _encoded("keys: []\n")),
    }
    machine.run(CREATE_KEYS, answers=answers)

    assert "endpoint-key" in machine.files
    assert "gateway-keys" not in machine.files


def test_a_list_of_who_may_use_what_is_no_key(machine: Machine) -> None:
    """Where api-keys holds the gateway's YAML, its first line must not be shown to engines."""
    answers = {"data.api-keys": (0, _encoded("keys:\n  - name: team-a\n"))}
    done, record = machine.run(CREATE_KEYS, answers=answers)

    assert done.returncode == 1
    assert "api-keys" in done.stderr
    assert all(line.startswith("kubectl get") for line in record)


def test_cluster_is_what_eksctl_takes() -> None:
    """By the fields of eksctl's schema that we use."""
    assert custom_resource_problems(load_all((K8S / "cluster/cluster.yaml").read_text())) == []


def _encoded(text: str) -> str:
    return base64.b64encode(text.encode()).decode()
