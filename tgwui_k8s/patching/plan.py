"""What abilities would make of a checkout's files: states, edits, new contents. Writes nothing."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import libcst as cst

from tgwui_k8s.patching.edits import Edit, State, add_imports
from tgwui_k8s.patching.errors import ConflictError, PatchingError, SeamGoneError
from tgwui_k8s.patching.series import Patch

Read = Callable[[str], "bytes | None"]
"""A file's bytes by its path in the checkout; None where there is no such file."""


@dataclass(frozen=True)
class Finding:
    """What one ability is in a checkout."""

    patch: Patch
    state: State
    num_applied: int = 0
    num_applicable: int = 0
    reasons: tuple[str, ...] = ()
    """Why it conflicts."""


@dataclass
class Plan:
    """New contents by path, and how many places each ability changed."""

    contents: dict[str, bytes] = field(default_factory=dict)
    num_places: dict[str, int] = field(default_factory=dict)
    num_seams: dict[str, int] = field(default_factory=dict)
    """Edits that had something to do."""


class Sources:
    """Files of a checkout, parsed once."""

    def __init__(self, read: Read) -> None:
        self._read = read
        self._modules: dict[str, cst.Module] = {}
        self._original: dict[str, cst.Module] = {}

    def path_of(self, edit: Edit) -> str:
        """The file that an edit is about. Raises `SeamGoneError` where there is none."""
        for path in edit.paths:
            if path in self._modules or self._parse(path):
                return path
        raise SeamGoneError(f"there is no {' or '.join(edit.paths)}")

    def __getitem__(self, path: str) -> cst.Module:
        return self._modules[path]

    def __setitem__(self, path: str, module: cst.Module) -> None:
        self._modules[path] = module

    def changed(self) -> Mapping[str, cst.Module]:
        """Those that are no longer as they were read."""
        return {
            path: module
            for path, module in self._modules.items()
            if module is not self._original[path]
        }

    def _parse(self, path: str) -> bool:
        content = self._read(path)
        if content is None:
            return False
        try:
            self._modules[path] = self._original[path] = cst.parse_module(content)
        except (cst.ParserSyntaxError, UnicodeDecodeError) as error:
            reason = " ".join(str(error).split())[:200]
            raise PatchingError(f"{path} is no Python that can be read: {reason}") from None
        return True


def examine(read: Read, series: tuple[Patch, ...]) -> list[Finding]:
    """The state of every ability."""
    sources = Sources(read)
    return [_examine(sources, patch) for patch in series]


def make_plan(read: Read, patches: tuple[Patch, ...]) -> Plan:
    """All edits of these abilities, in their order, made in memory.

    Raises `ConflictError` with every reason there is where one of them does not fit.
    """
    sources = Sources(read)
    plan = Plan()
    conflicts: dict[str, tuple[str, ...]] = {}
    for patch in patches:
        plan.num_places[patch.name] = plan.num_seams[patch.name] = 0
        reasons: list[str] = []
        for edit in patch.edits:
            try:
                path = sources.path_of(edit)
                sources[path], num_done = edit.apply(sources[path], path)
            except SeamGoneError as error:
                reasons.append(str(error))
                continue
            plan.num_places[patch.name] += num_done
            plan.num_seams[patch.name] += num_done > 0
        if reasons:
            conflicts[patch.name] = tuple(dict.fromkeys(reasons))
    if conflicts:
        raise ConflictError(conflicts)
    for path, module in sources.changed().items():
        content = add_imports(module).bytes
        _check_compiles(path, content)
        plan.contents[path] = content
    return plan


def reader(root: Path) -> Read:
    """Reads files below a folder."""

    def read(path: str) -> bytes | None:
        try:
            return (root / path).read_bytes()
        except (FileNotFoundError, NotADirectoryError):
            return None

    return read


def _examine(sources: Sources, patch: Patch) -> Finding:
    states: list[State] = []
    reasons: list[str] = []
    for edit in patch.edits:
        try:
            path = sources.path_of(edit)
            states.append(edit.state(sources[path], path))
        except SeamGoneError as error:
            reasons.append(str(error))
    num_applied = states.count(State.APPLIED)
    num_applicable = states.count(State.APPLICABLE)
    if reasons:
        state = State.CONFLICT
    elif num_applicable:
        state = State.APPLICABLE
    else:
        state = State.APPLIED if num_applied else State.NOT_NEEDED
    return Finding(patch, state, num_applied, num_applicable, tuple(dict.fromkeys(reasons)))


def _check_compiles(path: str, content: bytes) -> None:
    """Raise `PatchingError` for code that our own edits would have broken."""
    try:
        compile(content, path, "exec", dont_inherit=True)
    except SyntaxError as error:
        raise PatchingError(f"{path} would not compile: {error}; this is a bug of ours") from None
