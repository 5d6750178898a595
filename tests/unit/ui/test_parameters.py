"""The parameters on the page are the API's, and its words are there in both languages."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

import tgwui_k8s.ui
from tgwui_k8s.api.schemas.chat import ChatRequest
from tgwui_k8s.ui.parameters import GROUPS, parameters, sampler_names
from tgwui_k8s.ui.words import words

UI = Path(tgwui_k8s.ui.__file__).parent
PLACEHOLDER = re.compile(r"\{(\w+)\}")


def test_every_sampler_of_the_api_is_on_the_page_once() -> None:
    """Also one that has been added to the schema and has no place of its own yet."""
    names = [one.name for one in parameters()]

    assert sampler_names() <= set(names)
    assert len(names) == len(set(names))


def test_a_new_sampler_shows_up_by_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    """In the last group, with the API's own words."""
    without = {**GROUPS, "truncation": ("top_p",)}
    monkeypatch.setattr("tgwui_k8s.ui.parameters.GROUPS", without)
    (min_p,) = [one for one in parameters() if one.name == "min_p"]

    assert (min_p.group, min_p.kind, min_p.default) == ("order", "slider", 0.0)
    assert "less likely" in min_p.meaning


@pytest.mark.parametrize("one", parameters(), ids=lambda one: one.name)
def test_what_a_parameter_is_at_first_the_api_takes(one: object) -> None:
    """Defaults and bounds are valid requests."""
    for value in (one.default, one.minimum, one.maximum):  # type: ignore[attr-defined]
        if value is None or value == "":
            continue
        body = {"messages": [{"role": "user", "content": "x"}], one.name: value}  # type: ignore[attr-defined]
        ChatRequest.model_validate(body)


def test_both_languages_say_the_same() -> None:
    """The same keys with the same places to fill; each parameter's meaning in Chinese."""
    english, chinese = words("en"), words("zh")
    meanings = {f"parameter_{name}" for names in GROUPS.values() for name in names}

    assert set(english) | meanings == set(chinese)
    for key, text in english.items():
        assert sorted(PLACEHOLDER.findall(text)) == sorted(PLACEHOLDER.findall(chinese[key])), key


def test_the_script_says_nothing_that_has_no_words() -> None:
    """Every key that a script or the page names is in the files."""
    named = set()
    for file in (UI / "static").glob("*.js"):
        named |= set(re.findall(r'say\("(\w+)"', file.read_text(encoding="utf-8")))
    for file in UI.glob("*.py"):
        named |= set(re.findall(r'say\("(\w+)"\)', file.read_text(encoding="utf-8")))

    assert len(named) > 50
    assert named <= set(words("en"))


def test_no_words_are_left_over() -> None:
    """Every key is named somewhere: whole, or its end where its beginning is put before it."""
    files = (*(UI / "static").glob("*.js"), *UI.glob("*.py"))
    sources = "".join(file.read_text(encoding="utf-8") for file in files)
    made = re.compile(r"(error|fact|group|parameter|table|chat_state|chat_thinking)_")
    for key in words("en"):
        name = re.sub(r"^(chat|notebook)_", "", key)
        is_named = any(f'"{one}"' in sources for one in (key, name))
        assert is_named or made.match(key), key


def test_nothing_of_ours_names_another_host() -> None:
    """Fonts, scripts, styles: the page works without internet."""
    for file in (UI / "static").iterdir():
        text = file.read_text(encoding="utf-8").replace("http://www.w3.org/2000/svg", "")
        assert re.findall(r"https?://(?!\$\{)", text) == [], file.name
