"""Templates of the demo model's corpus expand as written."""

from __future__ import annotations

from random import Random

from hypothesis import given
from hypothesis import strategies as st

from tgwui_k8s.demo.templates import fill, fill_skewed


@given(st.integers())
def test_a_slot_has_one_value_throughout_a_text(seed: int) -> None:
    """Who is called Anna at the beginning is called Anna at the end."""
    text = fill("{name} and {name}", Random(seed), {"name": ["Anna", "Lily", "Mia"]})
    first, last = text.split(" and ")
    assert first == last


@given(st.integers())
def test_choices_nest(seed: int) -> None:
    """A choice may stand inside another."""
    assert fill("[a|b[c|d]]", Random(seed)) in {"a", "bc", "bd"}


def test_brackets_without_a_choice_are_text() -> None:
    """`data: [DONE]` stays as it is, and so does JSON."""
    text = 'data: [DONE] {"a": 1}'
    assert fill(text, Random(0)) == text


def test_earlier_choices_are_likelier_in_learned_text() -> None:
    """Two choices fall about two to one, so that greedy decoding meets no near tie."""
    random = Random(0)
    drawn = [fill_skewed("[a|b]", random) for _ in range(3000)]
    assert 1800 < drawn.count("a") < 2200
