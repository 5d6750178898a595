"""`field_table`: what becomes of every request field, for `docs/api.md`.

Nothing is written down here: the rows are read from the declarations in `api.schemas`.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any, Literal, get_args, get_origin

from pydantic.fields import FieldInfo

from tgwui_k8s.api.schemas.chat import ChatRequest
from tgwui_k8s.api.schemas.completions import CompletionRequest
from tgwui_k8s.api.schemas.embeddings import EmbeddingsRequest
from tgwui_k8s.api.schemas.fields import WireModel, declaration
from tgwui_k8s.api.schemas.response_request import ResponseRequest

Status = Literal["honoured", "accepted", "refused"]

REQUESTS: dict[str, type[WireModel]] = {
    "completions": CompletionRequest,
    "chat": ChatRequest,
    "embeddings": EmbeddingsRequest,
    "responses": ResponseRequest,
}


@dataclass(frozen=True, slots=True)
class FieldRow:
    """One field. Those of nested objects have dotted names, `[]` where there is an array."""

    name: str
    endpoints: tuple[str, ...]
    type: str
    """For a refused field: the neutral values it may have."""
    status: Status
    note: str
    """What it does, why it has no effect, or why it is refused."""


def field_table() -> list[FieldRow]:
    """A row per field, in order of declaration; fields that are equal on both endpoints once."""
    rows: list[FieldRow] = []
    for endpoint, model in REQUESTS.items():
        for row in _rows(endpoint, model, ""):
            twin = next((other for other in rows if _is_same(row, other)), None)
            if twin is None:
                rows.append(row)
            else:
                rows[rows.index(twin)] = replace(twin, endpoints=(*twin.endpoints, endpoint))
    return rows


def _is_same(row: FieldRow, other: FieldRow) -> bool:
    return replace(row, endpoints=()) == replace(other, endpoints=())


def _rows(endpoint: str, model: type[WireModel], prefix: str) -> Iterator[FieldRow]:
    schema = model.model_json_schema()
    definitions = schema.get("$defs", {})
    for field_name, field in model.model_fields.items():
        name = field.alias or field_name
        declared = declaration(field)
        yield FieldRow(
            name=prefix + name,
            endpoints=(endpoint,),
            type=_type_text(schema["properties"][name], definitions),
            status=declared["x-status"],
            note=_note(field, declared),
        )
        nested, mark = _nested_model(field.annotation)
        if nested is not None:
            yield from _rows(endpoint, nested, f"{prefix}{name}{mark}.")


def _note(field: FieldInfo, declared: dict[str, Any]) -> str:
    exceptions = [f"`{value}`: {why}" for value, why in declared.get("x-unsupported", {}).items()]
    refusals = f" Refused: {' '.join(exceptions)}" if exceptions else ""
    return f"{field.description}{refusals}"


def _nested_model(annotation: Any, mark: str = "") -> tuple[type[WireModel] | None, str]:
    """The model inside an annotation, and `[]` where it is the item of an array."""
    origin = get_origin(annotation)
    # To Python 3.10, list[int] is a type, too: hence the look at the origin.
    if origin is None and isinstance(annotation, type) and issubclass(annotation, WireModel):
        return annotation, mark
    for inner in get_args(annotation):
        nested, inner_mark = _nested_model(inner, "[]" if origin is list else mark)
        if nested is not None:
            return nested, inner_mark
    return None, ""


def _type_text(schema: dict[str, Any], definitions: dict[str, Any]) -> str:
    """A JSON schema in a few words; null is left out, as it means absence everywhere."""
    if "$ref" in schema:
        return "object"
    if "enum" in schema:
        refused = schema.get("not", {}).get("enum", ())
        values = [value for value in schema["enum"] if value not in refused]
        return ", ".join(json.dumps(value) for value in values)
    if "const" in schema:
        return json.dumps(schema["const"])
    if "anyOf" in schema:
        refused = {"not": schema["not"]} if "not" in schema else {}
        kinds = [{**item, **refused} for item in schema["anyOf"] if item.get("type") != "null"]
        return " or ".join(_type_text(item, definitions) for item in kinds)
    if schema.get("type") == "array":
        return f"array of {_type_text(schema['items'], definitions)}"
    return f"{schema.get('type', 'any')}{_bounds(schema)}"


def _bounds(schema: dict[str, Any]) -> str:
    signs = {"minimum": "≥", "exclusiveMinimum": ">", "maximum": "≤"}
    limits = [f"{sign} {schema[key]:g}" for key, sign in signs.items() if _is_told(schema, key)]
    return f" {', '.join(limits)}" if limits else ""


def _is_told(schema: dict[str, Any], key: str) -> bool:
    """The bounds of the integer types themselves are not worth a word."""
    return key in schema and abs(schema[key]) < 2**31 - 1
