"""Putting the double of Neuron's software on the path, and asking it what it saw.

`neuron_host` gives a host with cores of its own for subprocesses; `neuron` lets the test itself
import `transformers_neuronx` as well. When a test ends, both fail it if the double saw what the
library would have swallowed. What the double does: tests/neuron_standin/neuron_double.
"""

from __future__ import annotations

import importlib
import json
import os
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

STANDIN_PACKAGES = (
    "libneuronxla",
    "neuron_double",
    "neuronxcc",
    "torch_neuronx",
    "transformers_neuronx",
)


def standin_path() -> Path:
    """The folder to put on the path."""
    return Path(__file__).parents[1] / "neuron_standin"


def standin_env(folder: Path, **variables: str) -> dict[str, str]:
    """Environment of a process that finds the double, on the host whose state `folder` holds.

    Cores and journal are shared by every process with the same folder. `variables` override, e.g.
    NEURON_STANDIN_INSTANCE="inf2.xlarge". Variables of the real runtime are not inherited.
    """
    folder.mkdir(parents=True, exist_ok=True)
    inherited = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith(("NEURON_RT_", "NEURON_STANDIN_"))
    }
    path = os.pathsep.join(filter(None, [str(standin_path()), inherited.get("PYTHONPATH")]))
    return {
        **inherited,
        "PYTHONPATH": path,
        "NEURON_STANDIN_JOURNAL": str(folder / "journal.jsonl"),
        "NEURON_STANDIN_CORES": str(folder),
        **variables,
    }


def write_versions(folder: Path, versions: Mapping[str, str]) -> Path:
    """Make a folder that, put first on the path, gives distributions other versions.

    `versions`: e.g. {"neuronx-cc": "2.19.8089.0"}.
    """
    for name, version in versions.items():
        info = folder / f"{name.replace('-', '_')}-{version}.dist-info"
        info.mkdir(parents=True, exist_ok=True)
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
    return folder


class NeuronHost:
    """One imagined host: its cores, and the journal of all processes on it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._expected: list[str] = []

    def env(self, versions: Mapping[str, str] | None = None, **variables: str) -> dict[str, str]:
        """Environment for a process on this host; `versions` as in `write_versions`."""
        environment = standin_env(self.folder, **variables)
        if versions:
            folder = self.folder / "-".join(["versions", *versions.values()])
            path = [str(write_versions(folder, versions)), environment["PYTHONPATH"]]
            environment["PYTHONPATH"] = os.pathsep.join(path)
        return environment

    def events(self, event: str | None = None, **facts: Any) -> list[dict[str, Any]]:
        """What was seen, oldest first: of one kind, and with these facts."""
        journal = self.folder / "journal.jsonl"
        lines = journal.read_text().splitlines() if journal.exists() else []
        wanted = facts if event is None else {"event": event, **facts}
        return [
            entry
            for entry in map(json.loads, lines)
            if all(entry.get(name) == value for name, value in wanted.items())
        ]

    def count(self, event: str, **facts: Any) -> int:
        """How often it was seen: `count("compile")`, `count("forward", kind="decode")`."""
        return len(self.events(event, **facts))

    def violations(self) -> list[str]:
        """What the library would have swallowed, and no test has accepted."""
        messages = [entry["message"] for entry in self.events("violation")]
        return [
            message
            for message in messages
            if not any(expected in message for expected in self._expected)
        ]

    def accept_violation(self, text: str) -> list[str]:
        """Take out the violations that contain `text`, from now on too; returns those so far."""
        accepted = [message for message in self.violations() if text in message]
        self._expected.append(text)
        return accepted

    def restart(self) -> None:
        """End this process's hold of the device, as its exit would."""
        if "neuron_double.device" in sys.modules:
            sys.modules["neuron_double.device"].device.release()


@contextmanager
def watched_host(folder: Path) -> Iterator[NeuronHost]:
    """A new host; AssertionError at the end of the block if a violation was left."""
    folder.mkdir()
    host = NeuronHost(folder)
    yield host
    if left := host.violations():
        raise AssertionError("the library would have swallowed:\n" + "\n".join(left))


@pytest.fixture
def neuron_host(tmp_path: Path) -> Iterator[NeuronHost]:
    """A host for subprocesses; the test fails if the double saw a violation there."""
    with watched_host(tmp_path / "neuron-host") as host:
        yield host


@pytest.fixture
def neuron(neuron_host: NeuronHost, monkeypatch: pytest.MonkeyPatch) -> Iterator[NeuronHost]:
    """The same host, with `transformers_neuronx` importable by the test; two cores are visible."""
    for name in list(os.environ):
        if name.startswith(("NEURON_RT_", "NEURON_STANDIN_")):
            monkeypatch.delenv(name)
    monkeypatch.setenv("NEURON_STANDIN_JOURNAL", str(neuron_host.folder / "journal.jsonl"))
    monkeypatch.setenv("NEURON_STANDIN_CORES", str(neuron_host.folder))
    monkeypatch.setenv("NEURON_RT_NUM_CORES", "2")
    monkeypatch.syspath_prepend(standin_path())
    _forget_standin()
    yield neuron_host
    neuron_host.restart()
    _forget_standin()


def _forget_standin() -> None:
    """Unload the double, so that the next test begins with an untouched device."""
    for name in list(sys.modules):
        if name.partition(".")[0] in STANDIN_PACKAGES:
            del sys.modules[name]
    importlib.invalidate_caches()
