"""What the sampler remembers of a sequence equals what one reads off its tokens."""

from __future__ import annotations

from collections import Counter

from hypothesis import given, settings
from hypothesis import strategies as st

from tests.helpers.slow_samplers import suffix_match_length
from tgwui_k8s.runtime.samplers.history import SuffixMatches, TokenCounts

TOKENS = st.lists(st.integers(0, 5), max_size=30)


@settings(derandomize=True, deadline=None)
@given(prompt=TOKENS, output=TOKENS, window=st.integers(0, 20))
def test_counts_follow_the_window(prompt: list[int], output: list[int], window: int) -> None:
    """Counting token by token gives what counting the last tokens gives."""
    counts = TokenCounts(prompt, window, vocab_size=5)
    for size in range(len(output) + 1):
        counts.append(output[:size])

    first = max(0, len(prompt) + len(output) - window) if window else 0
    recent = [token for token in [*prompt, *output][first:] if token < 5]
    recent_output = [token for token in output[max(0, first - len(prompt)) :] if token < 5]
    assert sorted(counts.in_context().tolist()) == sorted(set(recent))
    token_ids, numbers = counts.in_output()
    assert dict(zip(token_ids.tolist(), numbers.tolist(), strict=True)) == Counter(recent_output)


def test_counts_grow_beyond_their_first_table() -> None:
    """Hundreds of distinct outputs are all counted."""
    counts = TokenCounts((), 0, vocab_size=1000)
    counts.append(list(range(500)))

    assert counts.in_output()[0].tolist() == list(range(500))


@settings(derandomize=True, deadline=None)
@given(
    tokens=st.lists(st.integers(0, 3), min_size=1, max_size=40),
    num_known=st.integers(0, 40),
    breakers=st.frozensets(st.integers(0, 3), max_size=2),
)
def test_matches_equal_a_search(
    tokens: list[int], num_known: int, breakers: frozenset[int]
) -> None:
    """Built at once, or grown token by token: the same matches, those a plain search finds."""
    matches = SuffixMatches(tokens[:num_known], breakers)
    for token in tokens[num_known:]:
        matches.append(token)

    expected = [
        (tokens[end + 1], length)
        for end in range(len(tokens) - 1)
        if (length := suffix_match_length(tokens, end, breakers)) >= 1
    ]
    token_ids, lengths = matches.followers(1)
    assert list(zip(token_ids.tolist(), lengths.tolist(), strict=True)) == expected


def test_an_empty_match_is_everywhere() -> None:
    """Asked for matches of length 0, every token of the sequence follows one."""
    assert SuffixMatches([4, 5, 4]).followers(0)[0].tolist() == [4, 5, 4]


def test_matches_are_found_in_linear_time_in_one_repeated_token() -> None:
    """A prompt that repeats one token, the worst case of a plain search, matches at full length."""
    _, lengths = SuffixMatches([1] * 50_000).followers(49_999)

    assert lengths.tolist() == [49_999]
