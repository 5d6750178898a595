"""Stop strings: what is found, where, and how much may still become one."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from tgwui_k8s.api.stop_strings import START, StopMatch, StopStrings

STRINGS = st.lists(st.text("ab", min_size=1, max_size=5), max_size=4)


def naive_match(strings: list[str], text: str) -> StopMatch | None:
    """The match that is complete first; the longest of several."""
    for end in range(1, len(text) + 1):
        complete = [string for string in strings if text[:end].endswith(string)]
        if complete:
            return StopMatch(max(complete, key=len), end)
    return None


def naive_num_held(strings: list[str], text: str) -> int:
    """Length of the longest suffix of `text` that begins a stop string without being one."""
    beginnings = [string[:size] for string in strings for size in range(len(string))]
    return max((len(part) for part in beginnings if text.endswith(part)), default=0)


@given(STRINGS, st.text("abc", max_size=30))
def test_scan_finds_what_a_naive_search_finds(strings: list[str], text: str) -> None:
    """The automaton agrees with trying every string at every place."""
    _, match = StopStrings(strings).scan(START, text)

    assert match == naive_match(strings, text)


@given(STRINGS, st.text("abc", max_size=30))
def test_num_held_is_the_longest_beginning_of_a_stop_string(strings: list[str], text: str) -> None:
    """Exactly the characters that may still become part of a stop string are held."""
    stop_strings = StopStrings(strings)
    state, match = stop_strings.scan(START, text)
    scanned = text if match is None else text[: match.end]

    assert stop_strings.num_held(state) == naive_num_held(strings, scanned)


@given(STRINGS, st.text("abc", max_size=30), st.integers(0, 30))
def test_scan_does_not_depend_on_how_text_is_divided(
    strings: list[str], text: str, cut: int
) -> None:
    """Two scans of the halves find what one scan of the whole finds."""
    stop_strings = StopStrings(strings)
    whole = stop_strings.scan(START, text)
    state, match = stop_strings.scan(START, text[:cut])
    if match is None:
        state, match = stop_strings.scan(state, text[cut:])
        match = match and StopMatch(match.text, match.end + len(text[:cut]))

    assert (state, match) == whole


def test_longest_of_the_strings_that_are_complete_together_wins() -> None:
    """Where one stop string ends another, the text is cut before the longer."""
    _, match = StopStrings(["END", "THE END"]).scan(START, "AT THE END.")

    assert match == StopMatch("THE END", 10)


def test_no_strings_never_match() -> None:
    """Without stop strings nothing is found and nothing held."""
    stop_strings = StopStrings([])

    assert stop_strings.scan(START, "text") == (START, None)
    assert stop_strings.num_held(START) == 0
