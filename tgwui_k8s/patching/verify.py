"""Whether a patched checkout is whole: edits, code, hooks, and answers of a running server."""

from __future__ import annotations

import importlib
import os
import re
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

from tgwui_k8s.errors import UsageError
from tgwui_k8s.patching.edits import State
from tgwui_k8s.patching.operations import status
from tgwui_k8s.patching.plan import reader
from tgwui_k8s.patching.questions import Outcome, ask_all
from tgwui_k8s.patching.site import MissingDependencyError, Site
from tgwui_k8s.patching.store import Store

_HOOK = re.compile(r"\btgwui_k8s_(\w+)\.(\w+)")
_CHECK_SECONDS = 60


@dataclass(frozen=True)
class Verdict:
    """What was found. `problems` is empty where all is well."""

    abilities: tuple[str, ...]
    """Those that are applied."""
    problems: tuple[str, ...]
    num_files: int
    num_hooks: int
    outcomes: tuple[Outcome, ...]
    """Of the smoke run."""
    skipped: str
    """Why there was no smoke run; empty where there was one."""


def verify(root: Path, python: str, *, smoke: bool = True) -> Verdict:
    """Check a patched checkout; `python` is the interpreter that runs it.

    Raises `UsageError` where there is no such interpreter.
    """
    found_python = shutil.which(python)
    if found_python is None:
        raise UsageError(f"--python: there is no program {python}")
    found = status(root)
    problems = [f"{path} changed after patching" for path in found.edited_since]
    for finding in found.findings:
        problems += [f"{finding.patch.name}: {reason}" for reason in finding.reasons]
        if finding.num_applied and finding.num_applicable:
            problems.append(f"{finding.patch.name} is applied in part")
    applied = [f.patch.name for f in found.findings if f.state is State.APPLIED]
    record = Store(root).record()
    files = sorted(record.files) if record is not None else []
    hooks: set[tuple[str, str]] = set()
    for path in files:
        content = reader(root)(path)
        problems += _compile(path, content)
        hooks |= set(_HOOK.findall((content or b"").decode("utf-8", "replace")))
    problems += _resolve(hooks)
    outcomes: list[Outcome] = []
    skipped = "" if smoke else "as asked"
    if smoke and not problems:
        outcomes, skipped = _smoke(root, os.path.abspath(found_python), set(applied))
    problems += [f"{o.question.text} {o.problem}" for o in outcomes if o.problem]
    return Verdict(
        tuple(applied), tuple(problems), len(files), len(hooks), tuple(outcomes), skipped
    )


def _compile(path: str, content: bytes | None) -> list[str]:
    if content is None:
        return [f"{path} is gone"]
    try:
        compile(content, path, "exec", dont_inherit=True)
    except (SyntaxError, ValueError) as error:
        return [f"{path} does not compile: {error}"]
    return []


def _resolve(hooks: set[tuple[str, str]]) -> list[str]:
    """Hooks that this package does not have."""
    missing = []
    for module, name in sorted(hooks):
        try:
            getattr(importlib.import_module(f"tgwui_k8s.upstream.{module}"), name)
        except (ImportError, AttributeError) as error:
            missing.append(f"hook {module}.{name}: {error}")
    return missing


def _smoke(root: Path, python: str, abilities: set[str]) -> tuple[list[Outcome], str]:
    command = [python, "-c", "import tgwui_k8s.upstream"]
    has_hooks = subprocess.run(command, capture_output=True, timeout=_CHECK_SECONDS, check=False)
    if has_hooks.returncode:
        return [], f"{python} has no tgwui-k8s: pip install --no-deps tgwui-k8s"
    site = Site(root, python)
    try:
        return list(ask_all(site, abilities)), ""
    except MissingDependencyError as error:
        return [], f"{python} lacks what upstream needs: {error}"
    finally:
        site.close()
