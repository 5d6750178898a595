"""The table that the reference page of the API is made of."""

from __future__ import annotations

import pytest
from pydantic.fields import FieldInfo

from tgwui_k8s.api.field_table import field_table
from tgwui_k8s.api.schemas.fields import declaration


def test_each_field_of_each_endpoint_has_one_row() -> None:
    """Fields that are the same on both endpoints share theirs."""
    rows = field_table()

    named = [(row.name, endpoint) for row in rows for endpoint in row.endpoints]
    assert len(named) == len(set(named))
    by_name = {row.name: row for row in rows}
    assert by_name["min_p"].endpoints == ("completions", "chat")
    assert by_name["suffix"].endpoints == ("completions",)


def test_rows_say_what_the_schema_says() -> None:
    """Types, bounds, neutral values and reasons are read from the declarations."""
    rows = {row.name: row for row in field_table()}

    assert rows["temperature"].type == "number ≥ 0, ≤ 2"
    assert rows["stop"].type == "string or array of string"
    assert rows["stream_options.include_usage"].type == "boolean"
    assert rows["messages[].content[].type"].type == '"text"'
    assert "image_url" in rows["messages[].content[].type"].note
    assert (rows["num_beams"].status, rows["num_beams"].type) == ("refused", "null, 1")
    assert rows["user"].status == "accepted"


def test_field_without_a_declaration_is_refused() -> None:
    """Nobody can add a field and forget to say what becomes of it."""
    with pytest.raises(TypeError):
        declaration(FieldInfo(annotation=int))
