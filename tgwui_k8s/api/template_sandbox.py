"""The Jinja dialect of chat templates, in a sandbox, with limits on time and size.

Templates come with models, so they are not trusted: no attributes that lead to Python's inside,
no changing of what they are given, and every turn of a loop and every call of a macro looks at
the clock. What this cannot stop is one expression that is expensive in itself ('x' * 10**10):
a pod's memory limit is what contains that.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping
from datetime import datetime
from typing import Any

from jinja2 import Template, TemplateError, nodes
from jinja2.exceptions import SecurityError
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.utils import Namespace

MAX_SECONDS = 5.0
MAX_CHARACTERS = 64 * 1024 * 1024
_CHECK = "_check_limits"


class TemplateRefusalError(TemplateError):
    """The template itself refuses the messages (`raise_exception`), or a limit is reached."""


class ChatEnvironment(ImmutableSandboxedEnvironment):
    """What Transformers offers to templates: its whitespace rules, tags, filters, functions."""

    def __init__(self, now: Callable[[], datetime] = datetime.now) -> None:
        super().__init__(
            trim_blocks=True, lstrip_blocks=True, extensions=[_GenerationTag, loopcontrols]
        )
        self.filters["tojson"] = _to_json
        self.globals["namespace"] = _TemplateNamespace
        self.globals["raise_exception"] = _raise_exception
        self.globals["strftime_now"] = lambda pattern: now().strftime(pattern)

    def compile_checked(self, source: str) -> Template:
        """A template that calls the limits' check in loops and macros; for `render_bounded`.

        Raises `jinja2.TemplateSyntaxError`.
        """
        tree = self.parse(source)
        for node in list(tree.find_all(nodes.Stmt)):
            if isinstance(node, (nodes.For, nodes.Macro, nodes.CallBlock)):
                check = nodes.Call(nodes.Name(_CHECK, "load"), [], [], None, None)
                node.body.insert(0, nodes.ExprStmt(check).set_lineno(node.lineno))
        tree.set_environment(self)
        return Template.from_code(self, self.compile(tree), self.make_globals(None))


def render_bounded(
    template: Template,
    variables: Mapping[str, Any],
    *,
    max_seconds: float = MAX_SECONDS,
    max_characters: int = MAX_CHARACTERS,
) -> str:
    """The text of a template from `compile_checked`. Raises whatever the template provokes."""
    deadline = time.monotonic() + max_seconds

    def check() -> None:
        if time.monotonic() > deadline:
            raise TemplateRefusalError(f"the template runs for more than {max_seconds:g} seconds")

    pieces: list[str] = []
    num_characters = 0
    for piece in template.generate({**variables, _CHECK: check}):
        check()
        num_characters += len(piece)
        if num_characters > max_characters:
            raise TemplateRefusalError(f"the template writes more than {max_characters} characters")
        pieces.append(piece)
    return "".join(pieces)


class _GenerationTag(Extension):
    """`{% generation %}` marks what an assistant wrote, for training; here it only groups."""

    tags = {"generation"}  # noqa: RUF012 - Jinja's type

    def parse(self, parser: Parser) -> nodes.Node:
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return nodes.Scope(body, lineno=line)


class _TemplateNamespace(Namespace):
    """Jinja's `namespace`, without names that mean something to Python."""

    def __init__(*args: Any, **kwargs: Any) -> None:
        # No parameter has a name here: a template may set any, `self` too.
        for name in dict(*args[1:], **kwargs):
            _refuse_private(name)
        Namespace.__init__(*args, **kwargs)

    def __setitem__(self, name: str, value: Any) -> None:
        _refuse_private(name)
        super().__setitem__(name, value)


def _refuse_private(name: object) -> None:
    if isinstance(name, str) and name.startswith("_"):
        raise SecurityError(f"a namespace cannot hold the private name {name!r}")


def _raise_exception(message: object) -> None:
    raise TemplateRefusalError(str(message))


def _to_json(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    # Jinja's own filter escapes for HTML, which no model has been trained on.
    return json.dumps(
        value,
        ensure_ascii=ensure_ascii,
        indent=indent,
        separators=separators,
        sort_keys=sort_keys,
    )
