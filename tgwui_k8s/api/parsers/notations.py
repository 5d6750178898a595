"""Arguments in a notation that is not JSON, as grammar rules made from a tool's schema.

Python's calls and Gemma's objects write strings and keys their own way, so that the grammar
engine's JSON schemas do not fit. What is here covers what schemas of tools are made of: types,
properties, arrays, enumerations. A keyword beyond that is named, not ignored.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from keyword import iskeyword
from typing import Any

Tag = Callable[[str], str]
"""The Lark expression for a mark: its token, where the vocabulary has one."""

_SAYS_NOTHING = frozenset({"title", "description", "default", "examples", "$schema", "deprecated"})
_UNDERSTOOD = frozenset(
    {"type", "enum", "const", "items", "properties", "required", "additionalProperties"}
)
_NUMBERS = (
    r"INTEGER: /-?(0|[1-9][0-9]{0,14})/",
    r"NUMBER: /-?(0|[1-9][0-9]{0,14})(\.[0-9]{1,15})?([eE][-+]?[0-9]{1,2})?/",
)
_TYPES = ("string", "integer", "number", "boolean", "null", "array", "object")


class NotationError(Exception):
    """A schema asks for what the notation cannot be held to; the message says what."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Notation:
    """How a family writes values. Separators are commas, brackets those of JSON."""

    quote: str
    """What stands around a string."""
    has_escapes: bool
    """Strings are written as in JSON; otherwise they hold anything but the quote."""
    constants: Mapping[bool | None, str]
    is_call: bool
    """Arguments stand as `key=value` between parentheses, and keys of objects are strings."""
    key_pattern: str
    """What a tool's name and the keys of its arguments may be."""

    def rules(self, tag: Tag) -> list[str]:
        """What the rules of any schema refer to: any string, number, value."""
        key = "string" if self.is_call else f"/{self.key_pattern}/"
        constants = " | ".join(_quoted(text) for text in self.constants.values())
        return [
            *_NUMBERS,
            *self._string_rules(tag),
            f"constant: {constants}",
            'list: "[" (value ("," " "? value)*)? "]"',
            f'member: {key} ":" " "? value',
            'object: "{" (member ("," " "? member)*)? "}"',
            "value: string | NUMBER | constant | list | object",
            f'argument: /{self.key_pattern}/ "{self.assignment}" value',
            'any_arguments: (argument ("," " "? argument)*)?',
        ]

    @property
    def assignment(self) -> str:
        """Between an argument's name and its value."""
        return "=" if self.is_call else ":"

    def _string_rules(self, tag: Tag) -> list[str]:
        if self.has_escapes:
            return [r"""string: STRING""", r"""STRING: /"([^"\\\x00-\x1f\x7f]|\\["\\nrtbf])*"/"""]
        mark = tag(self.quote)
        forbidden = re.escape(self.quote).replace("/", r"\/")
        return [
            f"string: {mark} STRING? {mark}",
            f"STRING: /(?s:.+)/ & ~/(?s:.*{forbidden}.*)/",
        ]


PYTHON = Notation(
    quote='"',
    has_escapes=True,
    constants={True: "True", False: "False", None: "None"},
    is_call=True,
    key_pattern="[A-Za-z_][A-Za-z0-9_]*",
)


def gemma_notation(quote: str) -> Notation:
    """Gemma's: keys bare, strings between marks of the vocabulary."""
    return Notation(
        quote=quote,
        has_escapes=False,
        constants={True: "true", False: "false", None: "null"},
        is_call=False,
        key_pattern=r"[A-Za-z_][A-Za-z0-9_.-]*",
    )


class ArgumentRules:
    """The rules of one tool's arguments, made from its schema."""

    def __init__(self, notation: Notation, tag: Tag, name: str) -> None:
        """`name`: of the rule for all arguments, and the beginning of every other rule's."""
        self.lines: list[str] = []
        self._notation = notation
        self._tag = tag
        self._name = name
        self._num_rules = 0

    def add(self, schema: Mapping[str, Any]) -> None:
        """Add the arguments' rule. Raises `NotationError` for what cannot be enforced."""
        _refuse_unknown(schema)
        for key in schema.get("properties", {}):
            if not _is_key(self._notation, key):
                raise NotationError(f"the argument's name {_quoted(key)}")
        if "properties" not in schema:
            if _is_closed(schema):
                self.lines.append(f'{self._name}: ""')
            elif schema.get("required"):
                raise NotationError("'required' without 'properties'")
            else:
                self.lines.append(f"{self._name}: any_arguments")
            return
        members = self._members(schema, lambda key: key + self._notation.assignment)
        self.lines.append(f"{self._name}: {members}")

    def _members(self, schema: Mapping[str, Any], write_key: Callable[[str], str]) -> str:
        """Properties in their order, the optional ones or not; commas in between.

        One rule for "nothing was written yet" and one for "something was", property by property.
        """
        required = set(schema.get("required", ()))
        properties = schema["properties"]
        if missing := required - properties.keys():
            raise NotationError(f"'required' has {_quoted(min(missing))}, 'properties' has not")
        first, following = '""', '""'
        for key, inner in reversed(properties.items()):
            member = f"{_quoted(write_key(key))} {self._value(inner)}"
            begun = self._rule(f'"," " "? {member} {following}')
            begin = self._rule(f"{member} {following}")
            if key in required:
                first, following = begin, begun
            else:
                first = self._rule(f"{begin} | {first}")
                following = self._rule(f"{begun} | {following}")
        return first

    def _value(self, schema: Any) -> str:
        if schema is True:
            return "value"
        if not isinstance(schema, Mapping):
            raise NotationError("a schema that allows nothing")
        _refuse_unknown(schema)
        if "const" in schema:
            return self._literal(schema["const"])
        if "enum" in schema:
            return self._one_of([self._literal(value) for value in schema["enum"]])
        kinds = schema.get("type", _TYPES if _says_nothing(schema) else "object")
        kinds = [kinds] if isinstance(kinds, str) else kinds
        return self._one_of([self._typed(kind, schema) for kind in kinds])

    def _typed(self, kind: str, schema: Mapping[str, Any]) -> str:
        constants = self._notation.constants
        if kind == "boolean":
            return f"({_quoted(constants[True])} | {_quoted(constants[False])})"
        if kind == "array":
            item = self._value(schema.get("items", True))
            return self._rule(f'"[" ({item} ("," " "? {item})*)? "]"')
        if kind == "object":
            return self._object(schema)
        simple = {"string": "string", "integer": "INTEGER", "number": "NUMBER"}
        return simple.get(kind) or _quoted(constants[None])

    def _object(self, schema: Mapping[str, Any]) -> str:
        notation = self._notation
        if "properties" not in schema:
            return '"{" "}"' if _is_closed(schema) else "object"
        for key in schema["properties"]:
            if not notation.is_call and not _is_key(notation, key):
                raise NotationError(f"the key {_quoted(key)}")
        members = self._members(
            schema, lambda key: f"{_quoted(key)}: " if notation.is_call else f"{key}:"
        )
        return f'("{{" {members} "}}")'

    def _literal(self, value: Any) -> str:
        notation = self._notation
        if value is None or isinstance(value, bool):
            return _quoted(notation.constants[value])
        if isinstance(value, int | float):
            return _quoted(json.dumps(value))
        if not isinstance(value, str):
            raise NotationError("an object or array in 'enum' or 'const'")
        if notation.has_escapes:
            return _quoted(_quoted(value))
        if notation.quote in value:
            raise NotationError(f"the text {_quoted(value)}")
        mark = self._tag(notation.quote)
        return f"({mark} {_quoted(value)} {mark})"

    def _one_of(self, expressions: Sequence[str]) -> str:
        return expressions[0] if len(expressions) == 1 else f"({' | '.join(expressions)})"

    def _rule(self, expression: str) -> str:
        self._num_rules += 1
        name = f"{self._name}_{self._num_rules}"
        self.lines.append(f"{name}: {expression}")
        return name


def check_tool_name(notation: Notation, name: str) -> None:
    """Raise `NotationError` where a tool of this name cannot be called."""
    if notation.is_call and not all(_is_key(notation, part) for part in name.split(".")):
        raise NotationError(f"the tool's name {_quoted(name)}")


def _is_key(notation: Notation, key: str) -> bool:
    is_reserved = notation.is_call and iskeyword(key)
    return re.fullmatch(notation.key_pattern, key) is not None and not is_reserved


def _refuse_unknown(schema: Mapping[str, Any]) -> None:
    for keyword in schema:
        if keyword not in _UNDERSTOOD | _SAYS_NOTHING:
            raise NotationError(f"the keyword {_quoted(keyword)}")
    if isinstance(schema.get("additionalProperties"), Mapping) and schema["additionalProperties"]:
        raise NotationError("a schema in 'additionalProperties'")


def _is_closed(schema: Mapping[str, Any]) -> bool:
    return schema.get("additionalProperties") is False


def _says_nothing(schema: Mapping[str, Any]) -> bool:
    return not schema.keys() & _UNDERSTOOD


def _quoted(text: str) -> str:
    return json.dumps(text, ensure_ascii=False)
