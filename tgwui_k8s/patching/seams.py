"""Where an edit belongs: a function by its dotted name and parameters, in one of some files."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
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
        found = [function for name, function in _functions(module) if name == self.name]
        if not found:
            raise SeamGoneError(f"{path} has no function {self.name}()")
        if len(found) > 1:
            raise SeamGoneError(f"{path} has {len(found)} functions {self.name}()")
        present = parameter_names(found[0])
        rest = iter(present)
        if not all(wanted in rest for wanted in self.parameters):
            raise SeamGoneError(
                f"{path}: {self.name}() takes ({', '.join(present)}), not "
                f"({', '.join(self.parameters)})"
            )
        return found[0]


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


def _functions(node: cst.CSTNode, prefix: str = "") -> Iterator[tuple[str, cst.FunctionDef]]:
    """Every function below a node by its dotted name. Looks into statements only, not expressions:
    a visitor of LibCST's would walk through every one of them for each edit.
    """
    for child in _statements(node):
        name = prefix
        if isinstance(child, (cst.FunctionDef, cst.ClassDef)):
            name = f"{prefix}{child.name.value}."
        if isinstance(child, cst.FunctionDef):
            yield name[:-1], child
        yield from _functions(child, name)


def _statements(node: cst.CSTNode) -> Iterator[cst.CSTNode]:
    body = getattr(node, "body", None)
    block = body.body if isinstance(body, cst.BaseSuite) else body
    if isinstance(block, Sequence):
        yield from (child for child in block if isinstance(child, cst.BaseCompoundStatement))
    yield from getattr(node, "handlers", ())
    for name in ("orelse", "finalbody"):
        other = getattr(node, name, None)
        if other is not None:
            yield other
