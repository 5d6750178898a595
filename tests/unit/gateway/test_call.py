"""What is read of a request, and how members are added to its body."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.helpers.gateway_calls import call_of
from tgwui_k8s.errors import InvalidRequestError
from tgwui_k8s.gateway.call import read_asked
from tgwui_k8s.gateway.limits import Limits, limits_of

CHARACTERS = 'ab{}",:ö'

values = st.recursive(
    st.none() | st.booleans() | st.integers(-5, 5) | st.text(CHARACTERS, max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(CHARACTERS, max_size=3), inner)
    ),
    max_leaves=6,
)


@settings(deadline=None)
@given(
    st.dictionaries(st.sampled_from(["prompt", "seed", "return_token_ids", "x", "}"]), values),
    st.sampled_from([(",", ":"), (", ", ": ")]),
    st.sampled_from(["", " ", "\n"]),
)
def test_added_members_count_and_nothing_else_changes(
    body: dict[str, Any], separators: tuple[str, str], end: str
) -> None:
    """The body with two members more, whatever stood in it before and however it was written."""
    raw = (json.dumps(body, separators=separators)[:-1] + end + "}" + end).encode()
    call = call_of(raw)
    written = call.body_with(seed=7, return_token_ids=True)
    assert json.loads(written) == {**body, "seed": 7, "return_token_ids": True}


@pytest.mark.parametrize(
    "raw", [b"", b"[]", b"{", b'"x"', b"{}{}", b"\xff", b"nul", b'{"x":"\xff"}']
)
def test_what_is_no_object_is_refused(raw: bytes) -> None:
    """In the words of the engine."""
    with pytest.raises(InvalidRequestError, match="could not parse the JSON body"):
        read_asked(raw)


def test_a_model_is_a_name() -> None:
    """Anything else cannot be looked up."""
    with pytest.raises(InvalidRequestError) as caught:
        read_asked(b'{"model": 5}')
    assert caught.value.param == "model"


@pytest.mark.parametrize(
    ("prompt", "number"),
    [('"a"', 1), ('["a","b"]', 2), ("[1,2,3]", 1), ("[[1],[2],[3]]", 3), ("[]", 1)],
)
def test_prompts_are_counted(prompt: str, number: int) -> None:
    """Texts and token ids, one or several."""
    assert call_of(f'{{"prompt": {prompt}}}'.encode()).num_prompts() == number


def test_wrong_types_are_the_engines_to_refuse() -> None:
    """The gateway reads past them."""
    call = call_of(b'{"stream": "yes", "priority": "high", "timeout_s": []}')
    assert (call.is_stream, call.priority) == (False, 0)
    assert limits_of({}, call.asked.timeout_s, Limits(), 600) == Limits()


def test_a_session_is_told_by_its_header() -> None:
    """Two requests of one session belong together, whatever they say."""
    headers = {b"x-session-id": b"s"}
    one, two = (call_of(b'{"prompt": "%c"}' % c, headers=headers) for c in (97, 98))
    assert one.conversation() == two.conversation() is not None
    assert call_of(b"{}").conversation() is None


def test_limits_come_from_headers_within_bounds() -> None:
    """Each phase by its header; the body's deadline shortens the total; too much is a 400."""
    headers = {b"x-gateway-first-byte-timeout": b"3", b"x-gateway-total-timeout": b"9"}
    limits = limits_of(headers, 5, Limits(), 600)
    assert (limits.first_byte, limits.total) == (3, 5)
    for wrong in (b"0", b"-1", b"601", b"nan", b"soon"):
        with pytest.raises(InvalidRequestError, match="x-gateway-connect-timeout"):
            limits_of({b"x-gateway-connect-timeout": wrong}, None, Limits(), 600)
