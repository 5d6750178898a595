"""The kinds of edit that the codemods need, each one function that makes an `Edit`.

Code is written as text: `tgwui_k8s_device.place({0}, shared.model)`, where {0} stands for the
source of what the matcher saved under that name.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import libcst as cst
import libcst.matchers as m

from tgwui_k8s.patching.edits import Edit, Replacement

Paths = str | Sequence[str]


def decorate(paths: Paths, function: str, hook: str, **limits: Any) -> Edit:
    """`@hook` next to the `def` of a function: below the decorators that are there."""
    name = function.partition("(")[0].rpartition(".")[2]

    def rewrite(node: cst.CSTNode) -> Replacement:
        assert isinstance(node, cst.FunctionDef)  # noqa: S101 - it matched
        decorator = cst.Decorator(cst.parse_expression(hook))
        return node.with_changes(decorators=[*node.decorators, decorator])

    return Edit(
        _paths(paths),
        f"function {function}",
        f"@{hook}",
        m.FunctionDef(name=m.Name(name)),
        rewrite,
        inside=function,
        **limits,
    )


def insert_before(
    paths: Paths, inside: str, seam: str, matches: m.BaseMatcherNode, hook: str, **limits: Any
) -> Edit:
    """A statement before the one that matches."""
    return _insert(paths, inside, seam, matches, hook, before=True, **limits)


def insert_after(
    paths: Paths, inside: str, seam: str, matches: m.BaseMatcherNode, hook: str, **limits: Any
) -> Edit:
    """A statement after the one that matches."""
    return _insert(paths, inside, seam, matches, hook, before=False, **limits)


def add_entry(paths: Paths, inside: str, table: str, beside: str, key: str, value: str) -> Edit:
    """`key: value` at the start of the dictionary that is assigned to `table` and has `beside`."""
    has_key = m.Dict(elements=[m.ZeroOrMore(), m.DictElement(key=_text(beside)), m.ZeroOrMore()])

    def add(node: cst.CSTNode, _: object) -> cst.BaseExpression:
        assert isinstance(node, cst.Dict)  # noqa: S101 - it matched
        comma = cst.Comma(whitespace_after=node.lbrace.whitespace_after)
        if isinstance(node.lbrace.whitespace_after, cst.SimpleWhitespace):
            comma = cst.Comma(whitespace_after=cst.SimpleWhitespace(" "))
        new = cst.DictElement(
            cst.parse_expression(repr(key)), cst.parse_expression(value), comma=comma
        )
        return node.with_changes(elements=[new, *node.elements])

    def rewrite(node: cst.CSTNode) -> Replacement:
        return m.replace(node, has_key, add)  # type: ignore[return-value]

    target = m.AssignTarget(target=m.Name(table))
    matches = m.Assign(targets=[target], value=has_key | m.Call(args=[m.Arg(value=has_key)]))
    return Edit(
        _paths(paths),
        f"table {table} with '{beside}'",
        f"{key!r}: {value}",
        matches,
        rewrite,
        inside=inside,
    )


def replace(
    paths: Paths,
    inside: str,
    seam: str,
    matches: m.BaseMatcherNode,
    template: str,
    hook: str,
    **limits: Any,
) -> Edit:
    """An expression by another; `{name}` in the template is what the matcher saved as `name`."""

    def rewrite(node: cst.CSTNode) -> Replacement:
        saved = m.extract(node, matches) or {}
        sources = {
            name: cst.Module([]).code_for_node(part)
            for name, part in saved.items()
            if isinstance(part, cst.CSTNode)
        }
        new = cst.parse_expression(template.format(**sources))
        if isinstance(node, cst.Call):
            return _keep_parentheses(node, new)
        return new

    return Edit(_paths(paths), seam, hook, matches, rewrite, inside=inside, **limits)


def change(
    paths: Paths,
    inside: str,
    seam: str,
    matches: m.BaseMatcherNode,
    rewrite: Any,
    hook: str,
    **limits: Any,
) -> Edit:
    """Anything else: `rewrite` gets the node that matched and returns what shall stand there."""
    return Edit(_paths(paths), seam, hook, matches, rewrite, inside=inside, **limits)


def statement(code: str) -> cst.BaseStatement:
    """One statement, with its comment."""
    return cst.parse_statement(code)


def call(name: str, **options: Any) -> m.Call:
    """A call of a dotted name."""
    return m.Call(func=dotted(name), **options)


def dotted(name: str) -> m.Name | m.Attribute:
    """`a.b.c` as a matcher."""
    first, *rest = name.split(".")
    node: m.Name | m.Attribute = m.Name(first)
    for part in rest:
        node = m.Attribute(value=node, attr=m.Name(part))
    return node


def line(small: Any) -> m.SimpleStatementLine:
    """A line with one simple statement."""
    return m.SimpleStatementLine(body=[small])


def _insert(
    paths: Paths,
    inside: str,
    seam: str,
    matches: m.BaseMatcherNode,
    hook: str,
    *,
    before: bool,
    **limits: Any,
) -> Edit:
    def rewrite(node: cst.CSTNode) -> Replacement:
        assert isinstance(node, (cst.BaseStatement, cst.SimpleStatementLine))  # noqa: S101
        new = statement(hook)
        if before:
            leading = getattr(node, "leading_lines", ())
            new = new.with_changes(leading_lines=leading)
            return cst.FlattenSentinel([new, node.with_changes(leading_lines=())])
        return cst.FlattenSentinel([node, new])

    return Edit(_paths(paths), seam, hook, matches, rewrite, inside=inside, **limits)


def _paths(paths: Paths) -> tuple[str, ...]:
    return (paths,) if isinstance(paths, str) else tuple(paths)


def _text(value: str) -> m.SimpleString:
    return m.SimpleString(value=m.MatchIfTrue(lambda source: source.strip("'\"") == value))


def _keep_parentheses(old: cst.Call, new: cst.BaseExpression) -> cst.BaseExpression:
    return new.with_changes(lpar=old.lpar, rpar=old.rpar) if old.lpar else new
