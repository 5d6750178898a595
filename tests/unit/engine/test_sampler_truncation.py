"""Every truncation keeps what its definition says, and renormalises what it kept."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.helpers import slow_samplers as slow
from tests.helpers.sampling_rows import make_row, probabilities, random_logits, sample_one
from tgwui_k8s.engine.sampler import NumpySampler

P = [0.4, 0.3, 0.2, 0.06, 0.04]
LOGITS = [math.log(p) for p in P]

Definition = Callable[[list[float], float], set[int]]


@pytest.mark.parametrize(
    ("params", "kept"),
    [
        ({"top_k": 2}, {0, 1}),
        ({"top_k": 99}, {0, 1, 2, 3, 4}),
        ({"top_p": 0.0}, {0}),
        ({"top_p": 0.7}, {0, 1}),
        ({"top_p": 0.71}, {0, 1, 2}),
        ({"min_p": 0.5}, {0, 1, 2}),
        ({"min_p": 0.76}, {0}),
        ({"top_a": 0.5}, {0, 1, 2}),
        ({"top_a": 1.0}, {0, 1, 2}),
        ({"epsilon_cutoff": 500.0}, {0, 1, 2, 3}),
        ({"epsilon_cutoff": 9000.0}, {0}),
        # Entropy 1.347 nats: sqrt(0.5) * exp(-1.347) = 0.184.
        ({"eta_cutoff": 5000.0}, {0, 1, 2}),
        ({"eta_cutoff": 500.0}, {0, 1, 2, 3}),
        # |surprise - entropy|: 0.431, 0.143, 0.262, 1.466, 1.872.
        ({"typical_p": 0.2}, {1}),
        ({"typical_p": 0.5}, {1, 2}),
        ({"typical_p": 0.6}, {0, 1, 2}),
        # Second differences 0, 0.04, 0.12, 0.02, 0.04, summed up: 0, .18, .73, .82, 1.
        ({"tfs": 0.1}, {0, 1}),
        ({"tfs": 0.2}, {0, 1, 2}),
        ({"tfs": 0.8}, {0, 1, 2, 3}),
        # Standard deviation 0.905; the largest logit lies 0.288, 0.693, 1.897, 2.303 above.
        ({"top_n_sigma": 1.0}, {0, 1, 2}),
        ({"top_n_sigma": 0.1}, {0}),
        ({"xtc_probability": 1.0, "xtc_threshold": 0.1}, {2, 3, 4}),
        ({"xtc_probability": 1.0, "xtc_threshold": 0.35}, {0, 1, 2, 3, 4}),
        ({"xtc_probability": 1.0, "xtc_threshold": 0.0}, {4}),
        # mu starts at 2 * tau bits.
        ({"mirostat_mode": 2, "mirostat_tau": 1.0}, {0, 1}),
        ({"mirostat_mode": 2, "mirostat_tau": 0.0}, {0}),
    ],
)
def test_truncation_by_hand(params: dict[str, Any], kept: set[int]) -> None:
    """Five tokens, one sampler, the sum done on paper."""
    left = probabilities(LOGITS, **params)

    total = sum(P[i] for i in kept)
    assert set(left) == kept
    assert left == pytest.approx({i: P[i] / total for i in kept}, rel=1e-5)


@pytest.mark.parametrize(
    ("field", "definition", "values"),
    [
        ("top_p", slow.top_p, [0.1, 0.5, 0.9, 0.99]),
        ("min_p", slow.min_p, [0.02, 0.2, 0.7]),
        ("top_a", slow.top_a, [0.05, 0.3, 0.9]),
        ("epsilon_cutoff", slow.epsilon, [3.0, 40.0, 300.0]),
        ("eta_cutoff", slow.eta, [3.0, 40.0, 300.0]),
        ("typical_p", slow.typical, [0.1, 0.5, 0.9, 0.99]),
        ("tfs", slow.tail_free, [0.2, 0.5, 0.9, 0.99]),
        ("xtc_threshold", slow.xtc, [0.01, 0.05, 0.2]),
    ],
)
@settings(derandomize=True, deadline=None, max_examples=25)
@given(seed=st.integers(0, 10**6), size=st.integers(1, 300), scale=st.floats(0.1, 6.0))
def test_truncation_equals_its_definition(
    field: str, definition: Definition, values: list[float], seed: int, size: int, scale: float
) -> None:
    """On random logits, each sampler keeps what a plain loop over its definition keeps."""
    logits = random_logits(seed, size, scale=scale)
    extra: dict[str, Any] = {"xtc_probability": 1.0} if field == "xtc_threshold" else {}
    for value in values:
        expected = definition(slow.softmax(logits.tolist()), value)
        assert set(probabilities(logits, **{field: value}, **extra)) == expected


@settings(derandomize=True, deadline=None, max_examples=25)
@given(seed=st.integers(0, 10**6), size=st.integers(2, 300), number=st.integers(1, 310))
def test_top_k_top_n_sigma_and_mirostat_equal_their_definitions(
    seed: int, size: int, number: int
) -> None:
    """The samplers whose parameter is no probability."""
    logits = random_logits(seed, size)
    p = slow.softmax(logits.tolist())

    if number > 1:
        assert set(probabilities(logits, top_k=number)) == slow.top_k(p, number)
    sigmas, tau = number / 100, number / 60
    assert set(probabilities(logits, top_n_sigma=sigmas)) == slow.n_sigma(logits.tolist(), sigmas)
    assert set(probabilities(logits, mirostat_mode=2, mirostat_tau=tau)) == slow.mirostat(
        p, 2 * tau
    )


@pytest.mark.parametrize("size", [3000, 20_000])
def test_top_p_is_exact_where_the_nucleus_is_larger_than_the_first_window(size: int) -> None:
    """A flat distribution needs thousands of tokens; all of them are found."""
    logits = random_logits(5, size, scale=0.5)

    expected = slow.top_p(slow.softmax(logits.tolist()), 0.9)
    assert len(expected) > 1024
    assert set(probabilities(logits, top_p=0.9)) == expected


@pytest.mark.parametrize(
    ("params", "kept"),
    [
        ({"top_k": 3}, [0, 1, 2]),
        ({"top_p": 0.5}, [0, 1, 2, 3, 4]),
        ({"typical_p": 0.5}, [0, 1, 2, 3, 4]),
        ({"min_p": 1.0}, list(range(10))),
        ({"epsilon_cutoff": 1000.0}, list(range(10))),
        ({"xtc_probability": 1.0, "xtc_threshold": 0.1}, [9]),
    ],
)
def test_equal_tokens_are_kept_in_order_of_id(params: dict[str, Any], kept: list[int]) -> None:
    """Ten equal tokens: numbers take the lowest ids, thresholds all; rounding never decides."""
    assert list(probabilities([1.5] * 10, **params)) == kept


def test_xtc_tosses_a_coin_for_every_token() -> None:
    """With probability 0.3 it acts on about three of ten positions, and always on the same ones."""
    acted = []
    for position in range(300):
        left = probabilities(
            LOGITS, output=[0] * position, xtc_probability=0.3, xtc_threshold=0.1, seed=3
        )
        acted.append(len(left) == 3)

    assert 60 < sum(acted) < 120
    again = probabilities(LOGITS, output=[0], xtc_probability=0.3, xtc_threshold=0.1, seed=3)
    assert (len(again) == 3) == acted[1]


def test_xtc_never_removes_the_end_of_sequence() -> None:
    """Where the end is among the top choices, XTC leaves them all."""
    params = {"xtc_probability": 1.0, "xtc_threshold": 0.1}

    assert set(probabilities(LOGITS, eos=(1,), **params)) == {0, 1, 2, 3, 4}
    assert set(probabilities(LOGITS, eos=(4,), **params)) == {2, 3, 4}
    assert set(probabilities(LOGITS, eos=(1,), top_k=4, **params)) == {0, 1, 2, 3}


def test_samplers_see_what_those_before_them_left() -> None:
    """top_k 2 leaves 4/7 and 3/7, of which the first is typical; of all five, the next two are."""
    assert set(probabilities(LOGITS, top_k=2, typical_p=0.5)) == {0}
    order = ("typical_p", "top_k")
    assert set(probabilities(LOGITS, typical_p=0.5, top_k=2, sampler_priority=order)) == {1, 2}


def test_temperature_last_truncates_the_model_s_own_distribution() -> None:
    """A high temperature first lets min_p keep more tokens."""
    hot = {"temperature": 2.0, "min_p": 0.3}

    assert set(probabilities(LOGITS, **hot)) == {0, 1, 2, 3, 4}
    last = probabilities(LOGITS, temperature_last=True, **hot)
    assert set(last) == {0, 1, 2}
    roots = [math.sqrt(p) for p in P[:3]]
    assert list(last.values()) == pytest.approx([root / sum(roots) for root in roots], rel=1e-5)


def test_mirostat_steers_towards_its_surprise() -> None:
    """mu moves against the error of every draw, as in algorithm 2 of the paper."""
    row = make_row(mirostat_mode=2, mirostat_tau=1.0, mirostat_eta=0.5, seed=11)
    sampler = NumpySampler()
    mu = 2.0
    for _ in range(30):
        kept = slow.mirostat(P, mu)
        token_id = sample_one(LOGITS, row, sampler).token_id
        assert token_id in kept
        surprise = -math.log2(P[token_id] / sum(P[i] for i in kept))
        mu -= 0.5 * (surprise - 1.0)
        assert row.state["plan"].mirostat_mu == pytest.approx(mu, abs=1e-5)
        row.output_token_ids.append(token_id)
