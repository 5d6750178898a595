"""A skipped test is a promise not kept: in CI (`CI=true`) only known reasons are accepted."""

from __future__ import annotations

import os
import re
from pathlib import Path

import pytest

from tests.helpers.collectable import imports_missing, missing_modules
from tests.helpers.neuron import neuron as neuron
from tests.helpers.neuron import neuron_host as neuron_host

ACCEPTED_SKIPS = (
    re.compile(r"needs a CUDA device"),
    re.compile(r"needs root|needs the right to make namespaces|no IPv6 here"),
    re.compile(r"needs kubectl"),
    re.compile(r"AVX"),
    re.compile(r"needs transformers>="),
    re.compile(r"needs vllm"),  # gigabytes, and a torch of its own: make test-vllm
    re.compile(r"needs the client libraries of make clients"),
    re.compile(r"needs Triton, of make test-triton"),
)

MISSING = missing_modules()

unexplained = pytest.StashKey[list[str]]()


def pytest_configure(config: pytest.Config) -> None:
    """Begin with no unexplained skip."""
    config.stash[unexplained] = []
    config.pluginmanager.register(SkipCheck(config), "skip-check")


def pytest_report_header(config: pytest.Config) -> list[str]:
    """Say what this environment lacks."""
    return [f"left out: tests that import {', '.join(MISSING)}"] if MISSING else []


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    """Leave out what cannot be imported here, and folders whose fixtures cannot."""
    if collection_path.is_dir():
        source = collection_path / "conftest.py"
        is_root = collection_path == Path(__file__).parent
        return True if source.is_file() and not is_root and _is_missing(source) else None
    is_test = collection_path.name.startswith("test_") and collection_path.suffix == ".py"
    return True if is_test and _is_missing(collection_path) else None


def _is_missing(source: Path) -> bool:
    return imports_missing(source, MISSING)


class SkipCheck:
    """Collects skips without an accepted reason, and fails a run in CI that has any."""

    def __init__(self, config: pytest.Config) -> None:
        self._found = config.stash[unexplained]

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """A test that was skipped."""
        self._note(report)

    def pytest_collectreport(self, report: pytest.CollectReport) -> None:
        """A module that was skipped as a whole."""
        self._note(report)

    @pytest.hookimpl(trylast=True)
    def pytest_sessionfinish(self, session: pytest.Session) -> None:
        """Turn success into failure."""
        if self._found and os.environ.get("CI") == "true" and session.exitstatus == 0:
            session.exitstatus = pytest.ExitCode.TESTS_FAILED

    def pytest_terminal_summary(self, terminalreporter: pytest.TerminalReporter) -> None:
        """Say which."""
        for line in self._found:
            terminalreporter.write_line(f"unexplained skip (fails in CI): {line}", red=True)

    def _note(self, report: pytest.TestReport | pytest.CollectReport) -> None:
        if report.skipped and not hasattr(report, "wasxfail"):
            reason = report.longrepr[2] if isinstance(report.longrepr, tuple) else ""
            if not any(accepted.search(reason) for accepted in ACCEPTED_SKIPS):
                self._found.append(f"{report.nodeid}: {reason}")
