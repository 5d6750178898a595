"""One setting as flags, variables, file and reference page need it, and how it gets its value.

Derived from the dataclasses of `tgwui_k8s.config` alone: there is no second list of settings.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import MISSING, Field, dataclass, fields
from difflib import get_close_matches
from functools import lru_cache
from types import NoneType, UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from tgwui_k8s.byte_size import format_byte_size, parse_byte_size
from tgwui_k8s.config import SECTIONS, ByteSize
from tgwui_k8s.errors import UsageError

Kind = Literal["text", "integer", "number", "boolean", "choice", "size", "list"]

VARIABLE_PREFIX = "TGWUI_"

_METAVARS: dict[Kind, str] = {
    "text": "TEXT",
    "integer": "INTEGER",
    "number": "NUMBER",
    "boolean": "BOOLEAN",
    "choice": "CHOICE",
    "size": "SIZE",
    "list": "TEXT",
}
_TRUE = frozenset({"1", "true", "yes", "on"})
_FALSE = frozenset({"0", "false", "no", "off"})
_LARGEST_INTEGER = 2**63 - 1


@dataclass(frozen=True, kw_only=True)
class SettingField:
    """What is known about one setting before it has a value."""

    name: str
    """The dataclass field: `kv_cache_memory`."""
    section: str
    kind: Kind
    default: Any
    help: str
    aliases: tuple[str, ...]
    metavar: str
    choices: tuple[str, ...]
    bounds: tuple[float | None, float | None]
    secret: bool

    @property
    def key(self) -> str:
        """Its key in the YAML file: `kv-cache-memory`."""
        return self.name.replace("_", "-")

    @property
    def flag(self) -> str:
        """Its flag: `--kv-cache-memory`."""
        return f"--{self.key}"

    @property
    def variable(self) -> str:
        """Its environment variable: `TGWUI_KV_CACHE_MEMORY`."""
        return VARIABLE_PREFIX + self.name.upper()

    def format(self, value: Any) -> str:
        """The value as a person would write it; secrets masked."""
        if value is None or value == ():
            return ""
        if self.secret:
            return "***"
        if self.kind == "size":
            return format_byte_size(value)
        if self.kind == "boolean":
            return "true" if value else "false"
        if self.kind == "list":
            return ", ".join(value)
        return f"{value:g}" if self.kind == "number" else str(value)

    def convert(self, value: Any, origin: str) -> Any:
        """Turn text, or a value of a YAML file, into this setting's type.

        `origin` names the flag, variable or key for the error. Raises `UsageError`.
        """
        try:
            converted = _CONVERTERS[self.kind](value)
        except ValueError as error:
            reason = "not a list of texts" if self.secret else error
            raise UsageError(f"{origin}: {reason}") from None
        self._check(converted, origin)
        return converted

    def _check(self, value: Any, origin: str) -> None:
        if self.kind == "choice" and value not in self.choices:
            allowed = ", ".join(self.choices)
            raise UsageError(f"{origin}: '{value[:100]}' is not one of {allowed}")
        least, largest = self.bounds
        if least is not None and value < least:
            raise UsageError(f"{origin}: {value} is less than {least}")
        if largest is not None and value > largest:
            raise UsageError(f"{origin}: {value} is more than {largest}")


@lru_cache(maxsize=1)
def setting_fields() -> dict[str, SettingField]:
    """Every setting by name, in the order of the dataclasses."""
    found = {}
    for section, section_type in SECTIONS.items():
        types = get_type_hints(section_type)
        for field in fields(section_type):
            found[field.name] = _describe(field, section, types[field.name])
    return found


def nearest(name: str, known: Iterable[str]) -> str:
    """`; did you mean 'x'?` for the known name that resembles this one, else nothing."""
    matches = get_close_matches(name, list(known), n=1)
    return f"; did you mean '{matches[0]}'?" if matches else ""


def _describe(field: Field[Any], section: str, annotation: Any) -> SettingField:
    assert field.default is not MISSING, "every setting has a default"  # noqa: S101
    kind, choices = _kind_of(annotation)
    return SettingField(
        name=field.name,
        section=section,
        kind=kind,
        default=field.default,
        help=field.metadata["help"],
        aliases=field.metadata["aliases"],
        metavar=field.metadata["metavar"] or _METAVARS[kind],
        choices=choices,
        bounds=field.metadata["bounds"],
        secret=field.metadata["secret"],
    )


def _kind_of(annotation: Any) -> tuple[Kind, tuple[str, ...]]:
    if get_origin(annotation) in (Union, UnionType):
        (annotation,) = (part for part in get_args(annotation) if part is not NoneType)
    if get_origin(annotation) is Literal:
        return "choice", get_args(annotation)
    if get_origin(annotation) is tuple:
        return "list", ()
    kinds: dict[Any, Kind] = {
        str: "text",
        int: "integer",
        float: "number",
        bool: "boolean",
        ByteSize: "size",
    }
    return kinds[annotation], ()


# ------------------------------------------------------------- text or YAML value to our types


def _to_text(value: Any) -> str:
    if not isinstance(value, str):
        raise ValueError(f"{_show(value)} is not text; put it in quotes")
    return value


def _to_integer(value: Any) -> int:
    if isinstance(value, str):
        try:
            value = int(value)
        except ValueError:
            raise ValueError(f"{_show(value)} is not a whole number") from None
    if not isinstance(value, int) or isinstance(value, bool) or abs(value) > _LARGEST_INTEGER:
        raise ValueError(f"{_show(value)} is not a whole number")
    return value


def _to_number(value: Any) -> float:
    try:
        number = math.nan if isinstance(value, bool) else float(value)
    except (TypeError, ValueError, OverflowError):
        number = math.nan
    if not math.isfinite(number):
        raise ValueError(f"{_show(value)} is not a number")
    return number


def _to_boolean(value: Any) -> bool:
    word = str(value).strip().lower()
    if word not in _TRUE | _FALSE:
        raise ValueError(f"{_show(value)} is not true or false")
    return word in _TRUE


def _to_choice(value: Any) -> str:
    # YAML 1.1 reads a bare `on` or `off` as a boolean.
    if isinstance(value, bool):
        return "on" if value else "off"
    return _to_text(value).strip()


def _to_size(value: Any) -> int:
    size = parse_byte_size(value) if isinstance(value, str) else _to_integer(value)
    return _to_integer(size)


def _to_list(value: Any) -> tuple[str, ...]:
    """A list as it is; text is split at its line ends, or at its commas where it has one line."""
    if isinstance(value, str):
        value = value.strip().split("\n" if "\n" in value.strip() else ",")
    if not isinstance(value, list | tuple):
        raise ValueError(f"{_show(value)} is not a list")
    items = (_to_text(item).strip() for item in value)
    return tuple(item for item in items if item)


def _show(value: Any) -> str:
    return f"'{value}'"[:100]


_CONVERTERS: dict[Kind, Any] = {
    "text": _to_text,
    "integer": _to_integer,
    "number": _to_number,
    "boolean": _to_boolean,
    "choice": _to_choice,
    "size": _to_size,
    "list": _to_list,
}
