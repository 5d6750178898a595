"""How a request field is declared: with what it does, or with the reason why it is refused.

Every field of a request model is made by one of three functions:

* `honoured`: it changes the answer,
* `accepted`: it has no effect here, and every SDK sends it,
* `refused`: clients know it from OpenAI or text-generation-webui and may send its neutral value;
  any other is a 400 that names it.

The declaration is the only place: the OpenAPI document (`x-status`), `docs/api.md` (through
`field_table`) and `refuse_unsupported` are read from it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Annotated, Any, TypeVar

from pydantic import BaseModel, ConfigDict, Discriminator, Field, GetCoreSchemaHandler, Tag
from pydantic.fields import FieldInfo
from pydantic_core import CoreSchema

from tgwui_k8s.errors import UnsupportedParameterError

INT32_MAX = 2**31 - 1
INT64_MAX = 2**63 - 1

TokenId = Annotated[int, Field(ge=0, le=INT32_MAX)]

_TEXT = "a text"
_ARRAY = "an array"

Item = TypeVar("Item")


def _shape(value: Any) -> str:
    return _ARRAY if isinstance(value, list) else _TEXT


Text = Annotated[str, Tag(_TEXT)]
AN_ARRAY = Tag(_ARRAY)
EITHER_SHAPE = Discriminator(_shape)
"""Of a union of `Text` and `AN_ARRAY`: errors point at the right place in one of them."""
TextOr = Annotated[Text | Annotated[list[Item], AN_ARRAY], EITHER_SHAPE]
"""A text, or an array of such items."""


def as_list(value: Any) -> Any:
    """A text as the only one of a list; anything else as it is."""
    return [value] if isinstance(value, str) else value


def _stop_at_first_wrong_item(schema: Any) -> None:
    """Make every array of the schema complain once: a million complaints take a minute to make."""
    if isinstance(schema, dict):
        if schema.get("type") == "list":
            schema["fail_fast"] = True
        schema = list(schema.values())
    if isinstance(schema, (list, tuple)):
        for inner in schema:
            _stop_at_first_wrong_item(inner)


class WireModel(BaseModel):
    """Strict: no unknown fields, no "5" for 5, no infinities. An integer is a fine decimal."""

    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False, frozen=True)

    @classmethod
    def __get_pydantic_core_schema__(cls, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        schema = handler(source)
        _stop_at_first_wrong_item(schema)
        return schema


def honoured(
    note: str, *, default: Any = None, unsupported: Mapping[Any, str] | None = None, **bounds: Any
) -> Any:
    """A field that does what `note` says. `unsupported` maps values refused by name to the why.

    Without a `default`, null and absence mean the same: the default that `note` names.
    """
    extra: dict[str, Any] = {"x-status": "honoured"}
    if unsupported:
        extra["x-unsupported"] = {str(value): why for value, why in unsupported.items()}
        extra["not"] = {"enum": list(unsupported)}
    return Field(default, description=note, json_schema_extra=extra, **bounds)


def accepted(note: str, **bounds: Any) -> Any:
    """A field without effect; `note` says why that is no lie."""
    return Field(None, description=note, json_schema_extra={"x-status": "accepted"}, **bounds)


def refused(why: str, *, neutral: Sequence[Any] = ()) -> Any:
    """A field that only its `neutral` values, or null, may have."""
    extra: dict[str, Any] = {"x-status": "refused", "enum": [None, *neutral]}
    return Field(None, description=why, json_schema_extra=extra)


def declaration(field: FieldInfo) -> dict[str, Any]:
    """What a field's declaration says; raises `TypeError` where there is none."""
    extra = field.json_schema_extra
    if not isinstance(extra, dict) or "x-status" not in extra:
        raise TypeError("A request field must be declared honoured, accepted or refused.")
    return dict(extra)


def refuse_unsupported(request: WireModel, path: str = "") -> None:
    """Raise `UnsupportedParameterError` for the first field that asks for what is not there."""
    for name in sorted(request.model_fields_set):
        field, value = type(request).model_fields[name], getattr(request, name)
        why = _why_refused(field, value)
        if why is not None:
            raise UnsupportedParameterError(
                f"Unsupported parameter: '{path}{name}'. {why}", param=f"{path}{name}"
            )
        for place, nested in _nested(value):
            refuse_unsupported(nested, f"{path}{name}.{place}")


def _why_refused(field: FieldInfo, value: Any) -> str | None:
    declared = declaration(field)
    if declared["x-status"] == "refused":
        is_neutral = any(_is_same(value, neutral) for neutral in declared["enum"])
        return None if is_neutral else field.description
    unsupported: dict[str, str] = declared.get("x-unsupported", {})
    return unsupported.get(str(value)) if unsupported else None


def _is_same(value: Any, known: Any) -> bool:
    """Equal as JSON: unlike Python's, its true is not 1."""
    return isinstance(value, bool) == isinstance(known, bool) and bool(value == known)


def _nested(value: Any) -> Iterator[tuple[str, WireModel]]:
    if isinstance(value, WireModel):
        yield "", value
    elif isinstance(value, list):
        for index, item in enumerate(value):
            if isinstance(item, WireModel):
                yield f"{index}.", item
