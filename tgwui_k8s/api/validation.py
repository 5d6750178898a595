"""Pydantic's complaints in OpenAI's words: code, dotted `param`, bounded message.

Only the first complaint is reported, as OpenAI does. Where a field accepts several types, pydantic
complains once per type; these are folded into one sentence.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from tgwui_k8s.errors import InvalidRequestError

MALFORMED_JSON = (
    "We could not parse the JSON body of your request. (HINT: This likely means you aren't using "
    "your HTTP library correctly. The API expects a JSON payload, but what was sent was not valid "
    "JSON.)"
)

MAX_INPUT_CHARS = 100
MAX_PARAM_CHARS = 200
MAX_COMPLAINTS = 100
"""Complaints that are looked at; the first one decides what the answer is about."""

Complaint = Mapping[str, Any]
"""One entry of `ValidationError.errors()`: type, loc, msg, input, ctx."""

_TYPE_NAMES = {
    "bool_parsing": "a boolean",
    "bool_type": "a boolean",
    "dict_type": "an object",
    "float_parsing": "a decimal",
    "float_type": "a decimal",
    "frozen_set_type": "an array",
    "int_from_float": "an integer",
    "int_parsing": "an integer",
    "int_type": "an integer",
    "list_type": "an array",
    "model_attributes_type": "an object",
    "model_type": "an object",
    "none_required": "null",
    "set_type": "an array",
    "string_type": "a string",
    "tuple_type": "an array",
}

_BOUNDS = {
    "greater_than": ("below minimum value", ">", "gt", "below_min_value"),
    "greater_than_equal": ("below minimum value", ">=", "ge", "below_min_value"),
    "less_than": ("above maximum value", "<", "lt", "above_max_value"),
    "less_than_equal": ("above maximum value", "<=", "le", "above_max_value"),
}


def first_complaint(complaints: Sequence[Complaint], body: Any) -> InvalidRequestError:
    """What to tell a client about `complaints`; `body` is the parsed body they are about."""
    first = complaints[0]
    if first["type"] == "json_invalid":
        return InvalidRequestError(MALFORMED_JSON)
    path = _field_path(first, body)
    if not path:
        return _about_the_body(first)
    # A union complains once per branch: the branch that got furthest knows best what is wrong.
    by_path: dict[str, list[Complaint]] = {}
    for complaint in complaints[:MAX_COMPLAINTS]:
        by_path.setdefault(_field_path(complaint, body), []).append(complaint)
    inside = [other for other in by_path if other == path or other.startswith(path + ".")]
    path = max(inside, key=lambda other: other.count("."))
    wrong_types = [one for one in by_path[path] if one["type"] in _TYPE_NAMES]
    if len(wrong_types) == len(by_path[path]):
        return _wrong_type(wrong_types, path)
    telling = next(one for one in by_path[path] if one["type"] not in _TYPE_NAMES)
    return _SENTENCES.get(telling["type"], _invalid_value)(telling, path)


def _about_the_body(complaint: Complaint) -> InvalidRequestError:
    if complaint["type"] in _TYPE_NAMES:
        kind = _kind_of(complaint["input"])
        return InvalidRequestError(
            f"The request body must be a JSON object, but was {kind}.", code="invalid_type"
        )
    return InvalidRequestError(_own_words(complaint), code=_own_code(complaint))


def _wrong_type(complaints: Sequence[Complaint], path: str) -> InvalidRequestError:
    expected = list(dict.fromkeys(_TYPE_NAMES[complaint["type"]] for complaint in complaints))
    wanted = expected[0] if len(expected) == 1 else f"one of {_listing(expected, 'or')}"
    kind = _kind_of(complaints[0]["input"])
    return InvalidRequestError(
        f"Invalid type for '{path}': expected {wanted}, but got {kind} instead.",
        param=path,
        code="invalid_type",
    )


def _missing(complaint: Complaint, path: str) -> InvalidRequestError:
    return InvalidRequestError(
        f"Missing required parameter: '{path}'.", param=path, code="missing_required_parameter"
    )


def _unknown(complaint: Complaint, path: str) -> InvalidRequestError:
    return InvalidRequestError(
        f"Unknown parameter: '{path}'.", param=path, code="unknown_parameter"
    )


def _out_of_bounds(complaint: Complaint, path: str) -> InvalidRequestError:
    wrong, sign, key, code = _BOUNDS[complaint["type"]]
    value, bound = complaint["input"], complaint["ctx"][key]
    kind = "decimal" if isinstance(value, float) or isinstance(bound, float) else "integer"
    return InvalidRequestError(
        f"Invalid '{path}': {kind} {wrong}. Expected a value {sign} {_number(bound)}, "
        f"but got {_quote(value)} instead.",
        param=path,
        code=f"{kind}_{code}",
    )


def _wrong_length(complaint: Complaint, path: str) -> InvalidRequestError:
    context, value = complaint["ctx"], complaint["input"]
    kind = "string" if complaint["type"].startswith("string") else "array"
    length = context.get("actual_length") or (len(value) if hasattr(value, "__len__") else 0)
    is_long = complaint["type"].endswith("too_long")
    limit = context["max_length"] if is_long else context["min_length"]
    if is_long:
        problem, code = f"{kind} too long", f"{kind}_above_max_length"
    elif length == 0:
        problem, code = f"empty {kind}", f"empty_{kind}"
    else:
        problem, code = f"{kind} too short", f"{kind}_below_min_length"
    article = "a" if kind == "string" else "an"
    got = f"an empty {kind}" if length == 0 else f"{article} {kind} with length {length}"
    return InvalidRequestError(
        f"Invalid '{path}': {problem}. Expected {article} {kind} with "
        f"{'maximum' if is_long else 'minimum'} length {limit}, but got {got} instead.",
        param=path,
        code=code,
    )


def _unsupported_value(complaint: Complaint, path: str) -> InvalidRequestError:
    expected = complaint["ctx"].get("expected") or complaint["ctx"].get("expected_tags") or ""
    value = complaint["input"]
    if "discriminator" in complaint["ctx"]:
        value = complaint["ctx"].get("tag")
    return InvalidRequestError(
        f"Invalid value for '{path}': {_quote(value)}. Supported values are: {expected}.",
        param=path,
        code="invalid_value",
    )


def _not_finite(complaint: Complaint, path: str) -> InvalidRequestError:
    return InvalidRequestError(
        f"Invalid '{path}': expected a finite number.", param=path, code="invalid_value"
    )


def _invalid_value(complaint: Complaint, path: str) -> InvalidRequestError:
    return InvalidRequestError(
        f"Invalid '{path}': {_own_words(complaint)}", param=path, code=_own_code(complaint)
    )


_SENTENCES: dict[str, Callable[[Complaint, str], InvalidRequestError]] = {
    "missing": _missing,
    "extra_forbidden": _unknown,
    **dict.fromkeys(_BOUNDS, _out_of_bounds),
    "too_long": _wrong_length,
    "too_short": _wrong_length,
    "string_too_long": _wrong_length,
    "string_too_short": _wrong_length,
    "literal_error": _unsupported_value,
    "enum": _unsupported_value,
    "union_tag_invalid": _unsupported_value,
    "finite_number": _not_finite,
}


# ------------------------------------------------------------------------------------- details


def _field_path(complaint: Complaint, body: Any) -> str:
    """Where the complaint points, as `messages.0.content`.

    Pydantic puts the names of union branches between the fields; following the body tells them
    apart.
    """
    location = complaint["loc"]
    parts: list[str] = []
    here = body
    for depth, part in enumerate(location):
        is_last = depth == len(location) - 1
        if _holds(here, part):
            here = here[part]
        elif not (is_last and complaint["type"] == "missing"):
            continue
        parts.append(str(part))
    return ".".join(parts)[:MAX_PARAM_CHARS]


def _holds(value: Any, part: object) -> bool:
    if isinstance(value, list):
        return isinstance(part, int) and 0 <= part < len(value)
    return isinstance(value, Mapping) and part in value


def _own_words(complaint: Complaint) -> str:
    """The message of a validator of ours, or of a rule of pydantic's without a sentence here."""
    cause = complaint.get("ctx", {}).get("error")
    text = str(cause) if isinstance(cause, Exception) else str(complaint["msg"])
    return text[:500]


def _own_code(complaint: Complaint) -> str:
    """A `PydanticCustomError`'s own word where it is one of OpenAI's, else `invalid_value`."""
    own = str(complaint["type"])
    return own if own in ("unsupported_parameter", "unsupported_value") else "invalid_value"


def _kind_of(value: Any) -> str:
    """A JSON value's type with its article."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return "a boolean"
    if isinstance(value, int):
        return "an integer"
    if isinstance(value, float):
        return "a decimal"
    if isinstance(value, (str, bytes)):
        return "a string"
    return "an object" if isinstance(value, Mapping) else "an array"


def _number(value: Any) -> str:
    return f"{value:g}" if isinstance(value, float) and value.is_integer() else str(value)


def _quote(value: Any) -> str:
    """The offending value, short enough for a message."""
    text = f"'{value}'" if isinstance(value, str) else json.dumps(value, default=repr)
    return text if len(text) <= MAX_INPUT_CHARS else text[:MAX_INPUT_CHARS] + "…"


def _listing(words: Sequence[str], conjunction: str) -> str:
    return f"{', '.join(words[:-1])} {conjunction} {words[-1]}"
