"""Pydantic's complaints become OpenAI's words, codes and params."""

from __future__ import annotations

from typing import Annotated, Literal

import pytest
from pydantic import BaseModel, ConfigDict, Field, field_validator
from pydantic_core import PydanticCustomError

from tgwui_k8s.api.body import parse_body
from tgwui_k8s.errors import InvalidRequestError


class Inner(BaseModel):
    """Something nested."""

    model_config = ConfigDict(extra="forbid", strict=True)
    role: Literal["user", "system"]
    content: str | list[str] | None = None


class Body(BaseModel):
    """Every kind of field that requests have."""

    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)
    temperature: float | None = Field(None, ge=0, le=2)
    max_tokens: int | None = Field(None, ge=1)
    top: float = Field(0.5, gt=0, lt=1)
    stop: str | Annotated[list[str], Field(max_length=2)] | None = None
    name: str = Field("x", min_length=2, max_length=3)
    messages: list[Inner] = Field(min_length=1)
    pair: list[int] = Field([1, 2], min_length=2)
    logit_bias: dict[int, float] | None = None
    checked: int = 0
    custom: int = 0

    @field_validator("checked")
    @classmethod
    def _is_even(cls, value: int) -> int:
        if value % 2:
            raise ValueError("it must be even.")
        return value

    @field_validator("custom")
    @classmethod
    def _is_zero(cls, value: int) -> int:
        if value:
            raise PydanticCustomError("unsupported_value", "Only 0 is supported.")
        return value


def _complaint(fields: str) -> InvalidRequestError:
    messages = "" if '"messages"' in fields else '"messages": [{"role": "user"}], '
    with pytest.raises(InvalidRequestError) as caught:
        parse_body(("{" + messages + fields + "}").encode(), Body)
    return caught.value


@pytest.mark.parametrize(
    ("fields", "param", "code", "message"),
    [
        (
            '"temperature": 200',
            "temperature",
            "decimal_above_max_value",
            "Invalid 'temperature': decimal above maximum value. "
            "Expected a value <= 2, but got 200 instead.",
        ),
        (
            '"temperature": -0.5',
            "temperature",
            "decimal_below_min_value",
            "Invalid 'temperature': decimal below minimum value. "
            "Expected a value >= 0, but got -0.5 instead.",
        ),
        (
            '"max_tokens": 0',
            "max_tokens",
            "integer_below_min_value",
            "Invalid 'max_tokens': integer below minimum value. "
            "Expected a value >= 1, but got 0 instead.",
        ),
        (
            '"top": 0',
            "top",
            "decimal_below_min_value",
            "Invalid 'top': decimal below minimum value. Expected a value > 0, but got 0 instead.",
        ),
        (
            '"temperature": "hot"',
            "temperature",
            "invalid_type",
            "Invalid type for 'temperature': expected a decimal, but got a string instead.",
        ),
        (
            '"max_tokens": 1.5',
            "max_tokens",
            "invalid_type",
            "Invalid type for 'max_tokens': expected an integer, but got a decimal instead.",
        ),
        (
            '"max_tokens": true',
            "max_tokens",
            "invalid_type",
            "Invalid type for 'max_tokens': expected an integer, but got a boolean instead.",
        ),
        (
            '"stop": 5',
            "stop",
            "invalid_type",
            "Invalid type for 'stop': expected one of a string or an array, "
            "but got an integer instead.",
        ),
        (
            '"stop": ["a", "b", "c"]',
            "stop",
            "array_above_max_length",
            "Invalid 'stop': array too long. Expected an array with maximum length 2, "
            "but got an array with length 3 instead.",
        ),
        (
            '"stop": ["a", 7]',
            "stop.1",
            "invalid_type",
            "Invalid type for 'stop.1': expected a string, but got an integer instead.",
        ),
        (
            '"messages": []',
            "messages",
            "empty_array",
            "Invalid 'messages': empty array. Expected an array with minimum length 1, "
            "but got an empty array instead.",
        ),
        (
            '"pair": [1]',
            "pair",
            "array_below_min_length",
            "Invalid 'pair': array too short. Expected an array with minimum length 2, "
            "but got an array with length 1 instead.",
        ),
        (
            '"name": "abcd"',
            "name",
            "string_above_max_length",
            "Invalid 'name': string too long. Expected a string with maximum length 3, "
            "but got a string with length 4 instead.",
        ),
        (
            '"name": ""',
            "name",
            "empty_string",
            "Invalid 'name': empty string. Expected a string with minimum length 2, "
            "but got an empty string instead.",
        ),
        (
            '"messages": [{"role": "user"}, {}]',
            "messages.1.role",
            "missing_required_parameter",
            "Missing required parameter: 'messages.1.role'.",
        ),
        (
            '"messages": [{"role": "robot"}]',
            "messages.0.role",
            "invalid_value",
            "Invalid value for 'messages.0.role': 'robot'. "
            "Supported values are: 'user' or 'system'.",
        ),
        (
            '"messages": [{"role": "user", "content": 1}]',
            "messages.0.content",
            "invalid_type",
            "Invalid type for 'messages.0.content': expected one of a string or an array, "
            "but got an integer instead.",
        ),
        ('"best": 1', "best", "unknown_parameter", "Unknown parameter: 'best'."),
        ('"checked": 3', "checked", "invalid_value", "Invalid 'checked': it must be even."),
        ('"custom": 1', "custom", "unsupported_value", "Invalid 'custom': Only 0 is supported."),
        (
            '"temperature": 1e999',
            "temperature",
            "invalid_value",
            "Invalid 'temperature': expected a finite number.",
        ),
        (
            '"logit_bias": {"x": 1}',
            "logit_bias.x",
            "invalid_type",
            "Invalid type for 'logit_bias.x': expected an integer, but got a string instead.",
        ),
    ],
)
def test_a_wrong_field_is_named_in_openais_words(
    fields: str, param: str, code: str, message: str
) -> None:
    """Code, dotted param and message for every kind of mistake."""
    error = _complaint(fields)
    assert (error.param, error.code, error.message) == (param, code, message)


class Cat(BaseModel):
    """One kind of a tagged union."""

    kind: Literal["cat"]


class Dog(BaseModel):
    """Another kind."""

    kind: Literal["dog"]


class Owner(BaseModel):
    """Has a tagged union."""

    pet: Annotated[Cat | Dog, Field(discriminator="kind")]


def test_an_unknown_kind_of_a_tagged_union_is_named() -> None:
    """The kinds there are stand in the message."""
    with pytest.raises(InvalidRequestError, match=r"'cow'.*'cat', 'dog'") as caught:
        parse_body(b'{"pet": {"kind": "cow"}}', Owner)
    assert (caught.value.param, caught.value.code) == ("pet", "invalid_value")


def test_a_missing_field_at_the_top_is_named() -> None:
    """The field that is not there is the param."""
    with pytest.raises(InvalidRequestError) as caught:
        parse_body(b"{}", Body)
    assert caught.value.param == "messages"


@pytest.mark.parametrize("raw", [b"", b"{", b"{'a': 1}", b"\xff\xfe"])
def test_what_is_no_json_is_said_so(raw: bytes) -> None:
    """Malformed JSON has neither param nor code."""
    with pytest.raises(InvalidRequestError, match="could not parse the JSON body") as caught:
        parse_body(raw, Body)
    assert (caught.value.param, caught.value.code) == (None, None)


@pytest.mark.parametrize(
    ("raw", "kind"), [(b"[]", "an array"), (b'"x"', "a string"), (b"null", "null"), (b"3", "an")]
)
def test_a_body_that_is_no_object_is_said_so(raw: bytes, kind: str) -> None:
    """Valid JSON of the wrong kind."""
    with pytest.raises(InvalidRequestError, match=f"must be a JSON object, but was {kind}"):
        parse_body(raw, Body)


def test_deep_nesting_is_refused_and_nothing_breaks() -> None:
    """100,000 brackets are malformed, not a crash."""
    with pytest.raises(InvalidRequestError):
        parse_body(b'{"messages": ' + b"[" * 100_000, Body)


def test_long_values_and_names_are_cut() -> None:
    """What a client sent comes back shortened."""
    by_value = _complaint('"messages": [{"role": "' + "r" * 100_000 + '"}]')
    by_name = _complaint('"' + "n" * 100_000 + '": 1')
    assert len(by_value.message) < 400
    assert len(by_name.message) < 400
