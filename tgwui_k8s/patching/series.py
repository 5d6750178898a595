"""The abilities: one codemod file each in `patches/`, in the order of `patches/series`."""

from __future__ import annotations

import importlib
import importlib.resources
from dataclasses import dataclass

from tgwui_k8s.errors import UsageError
from tgwui_k8s.patching.edits import Edit

_PACKAGE = "patches"


@dataclass(frozen=True)
class Patch:
    """One ability."""

    name: str
    title: str
    reason: str
    """What upstream does instead, and why that fails in a cluster."""
    versions: str
    """From when to when upstream needs it, and what was tried."""
    test: str
    """How to see that it works."""
    edits: tuple[Edit, ...]
    needs: tuple[str, ...] = ()
    """Abilities without which this one is none."""


def load_series() -> tuple[Patch, ...]:
    """All abilities, in order."""
    text = importlib.resources.files(_PACKAGE).joinpath("series").read_text(encoding="utf-8")
    lines = (line.partition("#")[0].strip() for line in text.splitlines())
    return tuple(_load(name) for name in lines if name)


def choose(series: tuple[Patch, ...], names: tuple[str, ...]) -> tuple[Patch, ...]:
    """Those of these names and what they need, in order; all of them where none is named.

    Raises `UsageError` for an unknown name.
    """
    by_name = {patch.name: patch for patch in series}
    wanted: set[str] = set()
    remaining = list(names or by_name)
    while remaining:
        name = remaining.pop()
        if name not in by_name:
            raise UsageError(f"no ability '{name[:100]}'; there are: {', '.join(by_name)}")
        if name not in wanted:
            wanted.add(name)
            remaining += by_name[name].needs
    return tuple(patch for patch in series if patch.name in wanted)


def _load(name: str) -> Patch:
    patch: Patch = importlib.import_module(f"{_PACKAGE}.{name}").PATCH
    return patch
