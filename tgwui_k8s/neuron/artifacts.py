"""Artifacts on disk: matched against what is wanted; written so that none are ever half there."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from tgwui_k8s.contract import LoadRequest, ProgressCallback
from tgwui_k8s.errors import BrokenModelError, StartupError
from tgwui_k8s.neuron.layout import NeuronFolder
from tgwui_k8s.neuron.manifest import (
    MANIFEST,
    Manifest,
    compile_command,
    differences,
    graph_files,
    make_manifest,
    write_manifest,
)
from tgwui_k8s.neuron.parameters import Parameters


@runtime_checkable
class ArtifactCompiler(Protocol):
    """A loader that can compile ahead of time; the command `neuron compile` asks for one."""

    def compile(self, request: LoadRequest, progress: ProgressCallback, *, cpu_only: bool) -> Path:
        """Compile the model, write the artifacts and return their folder.

        `cpu_only` touches no device. Raises a `StartupError` and leaves nothing half done.
        """
        ...


def why_unusable(
    manifest: Manifest | None,
    parameters: Parameters,
    config: Mapping[str, Any],
    folder: NeuronFolder,
) -> str | None:
    """None where the artifacts match; else what differs and which command compiles, in one line."""
    command = compile_command(folder.path, parameters, folder.artifacts)
    remedy = f"compile with: {command} (or start with --neuron-compile-on-start)"
    if manifest is not None:
        found = differences(manifest, parameters, config, folder.artifacts)
        if not found:
            return None
        shown = "; ".join(map(str, found[:6]))
        return f"the compiled artifacts in {folder.artifacts} do not match: {shown}; {remedy}"
    if graph_files(folder.artifacts):
        return (
            f"{folder.artifacts} has compiled graphs but no {MANIFEST} that says what they were "
            f"compiled for; {remedy}"
        )
    return f"there are no compiled artifacts in {folder.artifacts}; {remedy}"


@contextmanager
def new_artifacts(
    target: Path, parameters: Parameters, config: Mapping[str, Any]
) -> Iterator[Path]:
    """An empty folder to write graphs into; it becomes `target`, with a manifest, at the end.

    It lies beside `target`, so that the last step is a rename. Raises `BrokenModelError` where
    `target` holds something else than artifacts, `StartupError` where it cannot be written.
    """
    _refuse_others(target)
    fresh = target.with_name(f".{target.name}.{os.getpid()}.new")
    try:
        fresh.mkdir(parents=True)
        try:
            yield fresh
            write_manifest(make_manifest(parameters, config, fresh), fresh)
            _replace(target, fresh)
        finally:
            shutil.rmtree(fresh, ignore_errors=True)
    except OSError as error:
        raise StartupError(
            f"cannot write artifacts to {target}: {error.strerror or error}; name another folder "
            "with --neuron-artifacts"
        ) from error


def _refuse_others(target: Path) -> None:
    if not target.exists():
        return
    others = [
        entry.name
        for entry in (target.iterdir() if target.is_dir() else (target,))
        if entry.suffix != ".neff" and entry.name != MANIFEST
    ]
    if others:
        raise BrokenModelError(
            f"{target} holds {others[0]}, which is no artifact: it will not be replaced; name "
            "another folder with --neuron-artifacts"
        )


def _replace(target: Path, fresh: Path) -> None:
    """Put `fresh` in the place of `target`; whoever has read the old graphs is not disturbed."""
    old = target.with_name(f".{target.name}.{os.getpid()}.old")
    if target.exists():
        target.rename(old)
    fresh.rename(target)
    shutil.rmtree(old, ignore_errors=True)
