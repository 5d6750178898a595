"""What a client wants the answer to match, as text for the grammar engine (llguidance).

A request names at most one constraint. It is checked here, before anything reaches the engine: one
that does not compile is the client's mistake and nobody else's.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from tgwui_k8s.api.schemas.generation import GenerationFields
from tgwui_k8s.api.state import ServedModel
from tgwui_k8s.errors import InvalidRequestError, UnsupportedParameterError

MAX_GRAMMAR_LENGTH = 100_000
"""Characters: what is larger takes seconds to compile."""

ANY_OBJECT: Mapping[str, Any] = {"type": "object"}

MAX_SCHEMA_DEPTH = 100

_WHITE_SPACE = r"[\x20\x0A\x0D\x09]{1,40}"
"""Between JSON's tokens. Bounded: small models would write line breaks for ever."""

_LARGEST_INTEGER = 2**53

_SCHEMA_MEMBERS = frozenset({"name", "description", "schema", "strict"})


@dataclass(frozen=True, slots=True)
class Constraint:
    """A grammar that the answer must match."""

    param: str
    """The field it comes from."""
    grammar: Mapping[str, Any]
    """A member of llguidance's list of grammars."""


def constraint_of(
    request: GenerationFields, response_format: Mapping[str, Any] | None = None
) -> Constraint | None:
    """The one constraint of a request, checked; CPU work. None where it has none.

    `response_format` is OpenAI's, of the endpoints that have it.
    Raises `InvalidRequestError` naming the field that does not compile, or that is one too many.
    """
    found = []
    if response_format is not None and response_format["type"] != "text":
        found.append(_of_response_format(response_format))
    if request.guided_json is not None:
        found.append(json_constraint(request.guided_json, "guided_json"))
    if request.guided_regex is not None:
        found.append(_lark("guided_regex", f"start: /{_escaped(request.guided_regex)}/"))
    if request.guided_choice is not None:
        choices = " | ".join(map(json.dumps, request.guided_choice))
        found.append(_lark("guided_choice", f"start: {choices}"))
    for param in ("guided_grammar", "grammar_string"):
        text = getattr(request, param)
        if text:
            found.append(_lark(param, _as_lark(text, param)))
    if len(found) > 1:
        params = " and ".join(f"'{constraint.param}'" for constraint in found)
        raise InvalidRequestError(
            f"An answer can match one grammar only, but {params} are set.", param=found[1].param
        )
    for constraint in found:
        check(constraint)
    return found[0] if found else None


def json_constraint(schema: Any, param: str) -> Constraint:
    """Values that a JSON schema allows; not checked yet."""
    if isinstance(schema, str):
        try:
            schema = json.loads(schema)
        except (ValueError, RecursionError):
            raise _invalid(param, "expected a JSON schema, but got text that is no JSON") from None
    if not isinstance(schema, dict):
        raise _invalid(param, "expected a JSON schema, an object")
    if _depth_exceeds(schema, MAX_SCHEMA_DEPTH):
        raise _invalid(param, f"it is nested more than {MAX_SCHEMA_DEPTH} levels deep")
    if not _is_exact(schema):
        raise _invalid(param, "integers beyond 2**53 cannot be enforced")
    # Its own hints to the compiler are not the client's to set.
    schema = {**schema, "x-guidance": {"whitespace_pattern": _WHITE_SPACE}}
    return Constraint(param, {"json_schema": schema})


def check(constraint: Constraint) -> None:
    """Raise `InvalidRequestError` where the constraint does not compile."""
    grammar = grammar_text([constraint.grammar])
    if len(grammar) > MAX_GRAMMAR_LENGTH:
        raise _invalid(constraint.param, f"it is longer than {MAX_GRAMMAR_LENGTH} characters")
    import llguidance  # here, because few servers ever need it, and start-up is to be fast

    limits = llguidance.LLParserLimits(verbose_errors=False)
    complaint = llguidance.LLMatcher.validate_grammar(grammar, limits=limits)
    if complaint:
        raise _invalid(constraint.param, " ".join(complaint.split())[:500])


def require_grammars(model: ServedModel, param: str) -> None:
    """Raise `UnsupportedParameterError` where the loaded model's engine has no grammars."""
    if not model.info.capabilities.grammar:
        raise UnsupportedParameterError(
            f"Unsupported parameter: '{param}'. The loaded model cannot be held to a grammar.",
            param=param,
        )


def grammar_text(grammars: list[Mapping[str, Any]]) -> str:
    """What `GenerationRequest.grammar` holds; the first of `grammars` is where it starts."""
    return json.dumps({"grammars": grammars}, ensure_ascii=False)


def _of_response_format(response_format: Mapping[str, Any]) -> Constraint:
    if response_format["type"] == "json_object":
        return json_constraint(ANY_OBJECT, "response_format")
    param = "response_format.json_schema"
    asked = response_format.get("json_schema")
    if not isinstance(asked, dict):
        raise InvalidRequestError(
            f"Missing required parameter: '{param}'.",
            param=param,
            code="missing_required_parameter",
        )
    for name in asked.keys() - _SCHEMA_MEMBERS:
        raise InvalidRequestError(
            f"Unknown parameter: '{param}.{name}'.",
            param=f"{param}.{name}",
            code="unknown_parameter",
        )
    return json_constraint(asked.get("schema", ANY_OBJECT), f"{param}.schema")


def _depth_exceeds(value: Any, limit: int) -> bool:
    level = [value]
    for _ in range(limit):
        level = [inner for outer in level for inner in _inside(outer)]
    return bool(level)


def _inside(value: Any) -> Iterable[Any]:
    if isinstance(value, dict):
        return value.values()
    return value if isinstance(value, list) else ()


def _is_exact(value: Any) -> bool:
    """False where a number in the schema is one that the grammar engine would round."""
    if isinstance(value, int) and abs(value) > _LARGEST_INTEGER:
        return False
    return all(map(_is_exact, _inside(value)))


def _lark(param: str, text: str) -> Constraint:
    return Constraint(param, {"lark_grammar": text})


def _as_lark(text: str, param: str) -> str:
    """GBNF, which text-generation-webui's users know, or Lark."""
    from llguidance.gbnf_to_lark import any_to_lark

    try:
        lark: str = any_to_lark(text)
    except Exception as error:  # noqa: BLE001 - the converter raises what it likes
        raise _invalid(param, str(error)[:500]) from None
    return lark


def _escaped(regex: str) -> str:
    """A regular expression between slashes."""
    escaped, is_escape = "", False
    for character in regex:
        if character == "/" and not is_escape:
            escaped += "\\"
        escaped += "\\n" if character == "\n" else character
        is_escape = character == "\\" and not is_escape
    return escaped


def _invalid(param: str, reason: str) -> InvalidRequestError:
    return InvalidRequestError(f"Invalid '{param}': {reason}.", param=param, code="invalid_grammar")
