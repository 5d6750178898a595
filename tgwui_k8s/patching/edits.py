"""One edit: in this scope, of what matches, make that. And what an edit can say about a file.

Every edit leaves a `hook` behind: text with `tgwui_k8s_` in it, which stands in the scope when and
only when the edit has been made. Names `tgwui_k8s_MODULE` are imports of `tgwui_k8s.upstream`,
which `add_imports` puts at the top.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum

import libcst as cst
import libcst.matchers as m

from tgwui_k8s.patching.errors import SeamGoneError
from tgwui_k8s.patching.seams import Scope

Replacement = cst.CSTNode | cst.FlattenSentinel[cst.BaseStatement]
Rewrite = Callable[[cst.CSTNode], "Replacement"]

_ALIAS = re.compile(r"\btgwui_k8s_(\w+)(?=\.)")


class State(Enum):
    """Of an edit, or of an ability, in a checkout."""

    APPLIED = "applied"
    APPLICABLE = "applicable"
    NOT_NEEDED = "not needed"
    CONFLICT = "conflict"


@dataclass(frozen=True)
class Edit:
    """A structured edit of one file."""

    paths: tuple[str, ...]
    """The first that exists in the checkout is meant: upstream moves files."""
    seam: str
    """What is looked for, in words: it stands in messages."""
    hook: str
    """What stands in the scope afterwards."""
    matches: m.BaseMatcherNode
    rewrite: Rewrite
    inside: str = ""
    """As `Scope.parse` reads it."""
    at_most: int | None = 1
    """How many places may match; None for any number."""
    is_optional: bool = False
    """True where a version without such a place needs no edit; the scope must be there still."""
    if_scope: bool = False
    """True where a version without the scope needs no edit either."""

    def state(self, module: cst.Module, path: str) -> State:
        """What is to be done. Raises `SeamGoneError` where nothing can be."""
        return self._look(module, path)[0]

    def apply(self, module: cst.Module, path: str) -> tuple[cst.Module, int]:
        """The edited file, and in how many places it was. Raises `SeamGoneError`."""
        state, found = self._look(module, path)
        if state is not State.APPLICABLE:
            return module, 0
        edited = module.visit(_Rewriting(found, self.rewrite))
        assert isinstance(edited, cst.Module)  # noqa: S101 - a file stays a file
        return edited, len(found)

    def _look(self, module: cst.Module, path: str) -> tuple[State, list[cst.CSTNode]]:
        """What is to be done, and to which nodes."""
        scope = self._scope(module, path)
        if scope is None:
            return State.NOT_NEEDED, []
        if self.hook in module.code_for_node(scope):
            return State.APPLIED, []
        found = list(m.findall(scope, self.matches))
        if not found:
            if self.is_optional:
                return State.NOT_NEEDED, []
            raise SeamGoneError(f"{path}: {self.seam} is not there")
        if self.at_most is not None and len(found) > self.at_most:
            raise SeamGoneError(f"{path}: {self.seam} is there {len(found)} times")
        return State.APPLICABLE, found

    def _scope(self, module: cst.Module, path: str) -> cst.CSTNode | None:
        try:
            return Scope.parse(self.inside).find(module, path)
        except SeamGoneError:
            if self.if_scope:
                return None
            raise


class _Rewriting(cst.CSTTransformer):
    """Rewrites certain nodes, which are told by their identity."""

    def __init__(self, nodes: list[cst.CSTNode], rewrite: Rewrite) -> None:
        super().__init__()
        self._nodes = {id(node) for node in nodes}
        self._rewrite = rewrite

    def on_leave(self, original_node: cst.CSTNode, updated_node: cst.CSTNode) -> Replacement:  # type: ignore[override]
        """Rewrite what is meant; no methods by type are looked up."""
        return self._rewrite(updated_node) if id(original_node) in self._nodes else updated_node


def add_imports(module: cst.Module) -> cst.Module:
    """Import every `tgwui_k8s_MODULE` that the code uses and does not import, at the top."""
    code = module.code
    missing = [
        line
        for name in sorted(set(_ALIAS.findall(code)))
        if (line := f"from tgwui_k8s.upstream import {name} as tgwui_k8s_{name}") not in code
    ]
    statements = [cst.parse_statement(line, module.config_for_parsing) for line in missing]
    body = list(module.body)
    start = first_after_docstring(body)
    return module.with_changes(body=[*body[:start], *statements, *body[start:]])


def first_after_docstring(body: list[cst.SimpleStatementLine | cst.BaseCompoundStatement]) -> int:
    start = 0
    docstring = m.SimpleStatementLine([m.Expr(m.SimpleString() | m.ConcatenatedString())])
    future = m.SimpleStatementLine([m.ImportFrom(module=m.Name("__future__"))])
    while start < len(body) and (
        m.matches(body[start], docstring) or m.matches(body[start], future)
    ):
        start += 1
    return start
