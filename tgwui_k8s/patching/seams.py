"""Where an edit belongs: a function by its dotted name and parameters, in one of some files."""

from __future__ import annotations

import re
from dataclasses import dataclass

import libcst as cst

from tgwui_k8s.patching.errors import SeamGoneError

_FUNCTION = re.compile(r"([\w.]+)\(([^)]*)\)")


@dataclass(frozen=True)
class Scope:
    """A function, or where `name` is empty the whole file."""

    name: str
    """Dotted from the top of the file: `Iteratorize.__init__.gentask`."""
    parameters: tuple[str, ...] = ()
    """Those that must be there, in this order; others may stand between."""

    @classmethod
    def parse(cls, text: str) -> Scope:
        """`""`, or a name with its parameters: `encode(prompt)`."""
        if not text:
            return cls("")
        match = _FUNCTION.fullmatch(text)
        if match is None:
            raise ValueError(f"not a function with its parameters: {text}")
        return cls(match[1], tuple(part.strip() for part in match[2].split(",") if part.strip()))

    def find(self, module: cst.Module, path: str) -> cst.CSTNode:
        """The node of this scope. Raises `SeamGoneError` where it is gone, twice there or other."""
        if not self.name:
            return module
        found = _Functions(self.name)
        module.visit(found)
        if not found.nodes:
            raise SeamGoneError(f"{path} has no function {self.name}()")
        if len(found.nodes) > 1:
            raise SeamGoneError(f"{path} has {len(found.nodes)} functions {self.name}()")
        present = parameter_names(found.nodes[0])
        rest = iter(present)
        if not all(wanted in rest for wanted in self.parameters):
            raise SeamGoneError(
                f"{path}: {self.name}() takes ({', '.join(present)}), not "
                f"({', '.join(self.parameters)})"
            )
        return found.nodes[0]


def parameter_names(function: cst.FunctionDef) -> list[str]:
    """The parameters in the order they are written."""
    given = function.params
    every = [*given.posonly_params, *given.params]
    if isinstance(given.star_arg, cst.Param):
        every.append(given.star_arg)
    every += given.kwonly_params
    if given.star_kwarg is not None:
        every.append(given.star_kwarg)
    return [parameter.name.value for parameter in every]


class _Functions(cst.CSTVisitor):
    """Collects the functions of one dotted name."""

    def __init__(self, name: str) -> None:
        super().__init__()
        self.nodes: list[cst.FunctionDef] = []
        self._name = name
        self._stack: list[str] = []

    def visit_FunctionDef(self, node: cst.FunctionDef) -> None:  # noqa: N802 - LibCST calls it so
        self._stack.append(node.name.value)
        if ".".join(self._stack) == self._name:
            self.nodes.append(node)

    def leave_FunctionDef(self, original_node: cst.FunctionDef) -> None:  # noqa: N802 - LibCST calls it so
        self._stack.pop()

    def visit_ClassDef(self, node: cst.ClassDef) -> None:  # noqa: N802 - LibCST calls it so
        self._stack.append(node.name.value)

    def leave_ClassDef(self, original_node: cst.ClassDef) -> None:  # noqa: N802 - LibCST calls it so
        self._stack.pop()
