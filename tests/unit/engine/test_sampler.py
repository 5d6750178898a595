"""The sampler as a whole: draws, batches, failures, what it reports, and what it remembers."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.helpers import slow_samplers as slow
from tests.helpers.sampling_rows import make_row, probabilities, random_logits, sample_one
from tgwui_k8s.contract import SampledToken, Sampler, SamplingRow
from tgwui_k8s.engine.sampler import NumpySampler
from tgwui_k8s.runtime.samplers.noise import Use, uniform
from tgwui_k8s.runtime.samplers.report import LOWEST_LOGPROB
from tgwui_k8s.sampling import SamplingParams

MIXED: list[dict[str, Any]] = [
    {"temperature": 0.0},
    {},
    {"temperature": 0.7, "top_p": 0.9},
    {"top_k": 5, "temperature": 1.5},
    {"min_p": 0.05, "repetition_penalty": 1.2},
    {"typical_p": 0.8, "presence_penalty": 0.4},
    {"tfs": 0.9, "temperature_last": True, "temperature": 2.0},
    {"mirostat_mode": 2, "mirostat_tau": 3.0},
    {"dry_multiplier": 0.8, "no_repeat_ngram_size": 3, "top_a": 0.1},
    {"xtc_probability": 0.5, "xtc_threshold": 0.05, "epsilon_cutoff": 4.0},
    {"eta_cutoff": 6.0, "smoothing_factor": 0.3, "sampler_priority": ("eta_cutoff", "top_k")},
    {"dynamic_temperature": True, "dynatemp_high": 2.0, "top_n_sigma": 1.5},
    {"temperature": 0.0, "frequency_penalty": 0.9, "logprobs": 2},
    {"top_p": 0.8, "logprobs": 3, "logprobs_after_sampling": True, "logit_bias": {4: 2.0}},
]


def generate(
    sampler: Sampler, rows: list[SamplingRow], steps: int, seed: int, size: int = 200
) -> list[list[SampledToken]]:
    """Some steps of a batch; the logits of a row depend on nothing but its place and the step."""
    history: list[list[SampledToken]] = [[] for _ in rows]
    for step in range(steps):
        logits = random_logits(seed + step, len(MIXED), size)
        indices = [row.choice for row in rows]
        sampled = sampler.sample(logits, rows, indices, [None] * len(rows))
        for row, token, tokens in zip(rows, sampled, history, strict=True):
            row.output_token_ids.append(token.token_id)
            tokens.append(token)
    return history


def mixed_rows() -> list[SamplingRow]:
    """A row for each of MIXED; the choice index says which."""
    return [
        make_row((1, 2, 3, 1, 2), eos=(0,), choice=choice, seed=choice + 5, **params)
        for choice, params in enumerate(MIXED)
    ]


# ---------------------------------------------------------------------------------------- draws


@pytest.mark.parametrize(
    "params",
    [
        {},
        {"temperature": 0.6},
        {"top_p": 0.8},
        {"top_k": 3},
        {"typical_p": 0.7},
        {"repetition_penalty": 1.5, "min_p": 0.1},
    ],
)
def test_draws_follow_the_distribution(params: dict[str, Any]) -> None:
    """Three thousand draws of eight tokens against the distribution (chi-square)."""
    logits = random_logits(8, 8, scale=1.0)
    expected = probabilities(logits, (1, 2), **params)
    rows = [make_row((1, 2), seed=seed, **params) for seed in range(3000)]

    sampled = NumpySampler().sample(logits[None], rows, [0] * len(rows), [None] * len(rows))

    counts = np.bincount([token.token_id for token in sampled], minlength=8)
    assert set(np.flatnonzero(counts)) <= set(expected)
    statistic = sum((counts[i] - 3000 * p) ** 2 / (3000 * p) for i, p in expected.items())
    assert statistic < 30


def test_a_draw_is_the_inverse_cdf_in_order_of_token_id() -> None:
    """The first token at which the running sum exceeds the noise, recomputed by hand."""
    logits = random_logits(3, 50)
    reached = np.cumsum(slow.softmax(logits.tolist()))

    for seed in range(200):
        noise = uniform(seed, 2, 1, Use.TOKEN)
        row = make_row(output=(7,), choice=2, seed=seed)
        assert sample_one(logits, row).token_id == np.searchsorted(reached, noise, side="right")


def test_large_vocabularies_are_drawn_from_block_by_block() -> None:
    """The two-level search finds the same token as one running sum over all."""
    logits = random_logits(4, 10_000, scale=1.0)
    weights = np.exp(logits.astype(np.float64))
    reached = np.cumsum(weights) / weights.sum()

    for seed in range(100):
        noise = uniform(seed, 0, 0, Use.TOKEN)
        token_id = sample_one(logits, make_row(seed=seed)).token_id
        assert token_id == np.searchsorted(reached, noise, side="right")


def test_greedy_takes_the_lowest_of_equal_tokens() -> None:
    """Temperature 0 and top_k 1 alike, whatever the noise."""
    logits = [0.0, 3.0, 3.0, 1.0]

    assert {sample_one(logits, make_row(temperature=0.0, seed=s)).token_id for s in range(9)} == {1}
    assert {sample_one(logits, make_row(top_k=1, seed=s)).token_id for s in range(9)} == {1}


def test_greedy_heeds_penalties_and_nothing_that_draws() -> None:
    """XTC would remove the best token; a greedy row keeps it unless a penalty lowers it."""
    xtc = {"xtc_probability": 1.0, "xtc_threshold": 0.01, "typical_p": 0.1}

    assert sample_one([2.0, 1.9, 0.0], make_row(temperature=0.0, **xtc)).token_id == 0
    penalised = make_row(output=(0,), temperature=0.0, presence_penalty=0.5, **xtc)
    assert sample_one([2.0, 1.9, 0.0], penalised).token_id == 1


# -------------------------------------------------------------------------------------- batches


def test_a_row_gives_the_same_alone_and_in_a_batch() -> None:
    """Fourteen kinds of request together, one by one, and in reverse: the same tokens."""
    together = generate(NumpySampler(), mixed_rows(), steps=12, seed=0)
    alone = [generate(NumpySampler(), [row], steps=12, seed=0)[0] for row in mixed_rows()]
    backwards = generate(NumpySampler(), mixed_rows()[::-1], steps=12, seed=0)

    assert alone == together
    assert backwards[::-1] == together


@settings(derandomize=True, deadline=None, max_examples=20)
@given(seed=st.integers(0, 10**6), members=st.sets(st.integers(0, len(MIXED) - 1), min_size=1))
def test_any_selection_of_rows_gives_the_same(seed: int, members: set[int]) -> None:
    """Who else is in the batch never matters."""
    rows = mixed_rows()
    some = generate(NumpySampler(), [rows[i] for i in sorted(members)], steps=4, seed=seed)
    everyone = generate(NumpySampler(), mixed_rows(), steps=4, seed=seed)

    assert some == [everyone[i] for i in sorted(members)]


def test_state_is_rebuilt_from_tokens() -> None:
    """A row that loses its state between steps (preempted, resumed) goes on as if it had not."""
    stateless = [i for i, params in enumerate(MIXED) if "mirostat_mode" not in params]
    rows = [mixed_rows()[i] for i in stateless]
    expected = generate(NumpySampler(), rows, steps=10, seed=1)
    forgetful = [mixed_rows()[i] for i in stateless]
    found: list[list[SampledToken]] = [[] for _ in forgetful]
    for step in range(10):
        for row, tokens, one in zip(
            forgetful, found, generate(NumpySampler(), forgetful, 1, seed=1 + step), strict=True
        ):
            tokens += one
            row.state.clear()

    assert found == expected


def test_a_row_may_go_back() -> None:
    """Outputs that are taken away again leave no trace in the penalties."""
    row = make_row(output=(0, 1), presence_penalty=50.0, no_repeat_ngram_size=1)
    sampler = NumpySampler()
    assert sample_one([2.0, 1.0, 0.0], row, sampler).token_id == 2
    del row.output_token_ids[0]

    assert sample_one([2.0, -99.0, -9.0], row, sampler).token_id == 0


def test_the_logits_are_left_as_they_are() -> None:
    """The caller's array is read only."""
    logits = random_logits(2, len(MIXED), 64)
    before = logits.copy()
    logits.setflags(write=False)
    rows = mixed_rows()

    NumpySampler().sample(logits, rows, range(len(rows)), [None] * len(rows))
    assert np.array_equal(logits, before)


def test_a_torch_tensor_on_the_host_will_do() -> None:
    """Runners on the CPU hand over what they have."""
    logits = random_logits(2, len(MIXED), 64)
    expected = NumpySampler().sample(logits, mixed_rows(), range(14), [None] * 14)

    assert expected == NumpySampler().sample(
        torch.from_numpy(logits), mixed_rows(), range(14), [None] * 14
    )


# ------------------------------------------------------------------------------------- failures


@pytest.mark.parametrize("poison", [math.nan, math.inf])
@pytest.mark.parametrize("params", MIXED)
def test_a_broken_row_fails_alone(params: dict[str, Any], poison: float) -> None:
    """NaN or +inf in one row: token id -1 there, and the neighbours never notice."""
    logits = random_logits(6, 3, 30)
    healthy = [make_row(eos=(0,), **params) for _ in range(3)]
    expected = NumpySampler().sample(logits, healthy, [0, 1, 2], [None] * 3)
    logits[1, 17] = poison

    rows = [make_row(eos=(0,), **params) for _ in range(3)]
    first, broken, last = NumpySampler().sample(logits, rows, [0, 1, 2], [None] * 3)
    assert (first, last) == (expected[0], expected[2])
    assert broken == SampledToken(-1)


def test_a_row_that_runs_empty_between_samplers_takes_its_best_token() -> None:
    """An n-gram ban empties the row; truncations, temperatures and a report come after it."""
    order = ("top_p", "no_repeat_ngram", "typical_p", "dynamic_temperature", "top_k")
    for after_sampling in (False, True):
        row = make_row(
            (0,),
            banned_token_ids=(1,),
            sampler_priority=order,
            top_p=0.1,
            no_repeat_ngram_size=1,
            typical_p=0.9,
            dynamic_temperature=True,
            dynatemp_low=0.5,
            top_k=2,
            logprobs=2,
            logprobs_after_sampling=after_sampling,
        )
        assert sample_one([9.0, 8.0, 0.0, 1.0], row).token_id == 3


@pytest.mark.parametrize("params", [{}, {"temperature": 0.0}])
def test_a_broken_row_that_wants_logprobs_fails_alone(params: dict[str, Any]) -> None:
    """The report of a row full of NaN is made in vain, but made."""
    logits = np.full((2, 6), math.nan, np.float32)
    logits[1] = 0.0
    rows = [make_row(logprobs=6, **params), make_row(logprobs=6, **params)]

    broken, healthy = NumpySampler().sample(logits, rows, [0, 1], [None, None])
    assert broken == SampledToken(-1)
    assert healthy.logprobs is not None


def test_a_row_of_minus_infinity_fails() -> None:
    """There is nothing to choose from."""
    assert sample_one([-math.inf] * 4, make_row()) == SampledToken(-1)
    assert sample_one([-math.inf] * 4, make_row(temperature=0.0)) == SampledToken(-1)


@settings(derandomize=True, deadline=None, max_examples=60)
@given(
    values=st.lists(st.sampled_from([-math.inf, -3.0, -0.0, 0.0, 1.0, 5.0]), min_size=1,
                    max_size=12),
    params=st.sampled_from(MIXED),
    banned=st.sets(st.integers(0, 11)),
    mask=st.integers(1, 2**12 - 1),
)  # fmt: skip
def test_the_choice_is_always_allowed(
    values: list[float], params: dict[str, Any], banned: set[int], mask: int
) -> None:
    """Whatever logits, bans and masks: a token that mask and model allow, or -1 without one."""
    allowed = np.array([bool(mask >> i & 1) for i in range(len(values))])
    possible = {i for i, value in enumerate(values) if allowed[i] and value > -math.inf}
    row = make_row((0, 1), (1, 0), allowed=allowed, banned_token_ids=tuple(banned), **params)

    token_id = sample_one(values, row).token_id
    assert token_id in possible or (token_id == -1 and not possible)
    unbanned = possible - banned
    if unbanned and "no_repeat_ngram_size" not in params:
        assert token_id in unbanned


# ------------------------------------------------------------------------------------ logprobs


@pytest.mark.parametrize("params", MIXED)
def test_logprobs_are_the_model_s_own(params: dict[str, Any]) -> None:
    """log_softmax of the raw logits, before any sampler; one float for one token."""
    logits = random_logits(12, 40)
    expected = np.log(slow.softmax(logits.tolist()))
    asked = {**params, "logprobs": 5, "logprobs_after_sampling": False}

    token = sample_one(logits, make_row((3, 4), (4,), eos=(0,), **asked))
    top = token.logprobs
    assert top is not None
    assert top.token_id == token.token_id
    assert top.logprob == pytest.approx(expected[token.token_id], abs=1e-5)
    best = np.argsort(-logits, kind="stable").tolist()
    assert top.rank == 1 + best.index(token.token_id)
    own = [] if token.token_id in best[:5] else [token.token_id]
    assert list(top.token_ids) == best[:5] + own
    assert top.logprobs[top.token_ids.index(token.token_id)] == top.logprob


def test_logprobs_of_equal_tokens_rank_by_id() -> None:
    """Ties go to the lowest id, in the list and in the rank."""
    top = sample_one([1.0, 2.0, 2.0, 2.0, 0.0], make_row(logprobs=2, logit_bias={3: 50.0})).logprobs

    assert top is not None
    assert (top.token_id, top.rank, top.token_ids) == (3, 3, (1, 2, 3))
    assert len(set(top.logprobs)) == 1


def test_zero_logprobs_report_the_token_alone() -> None:
    """`logprobs` 0 is not None."""
    top = sample_one([0.0, 1.0], make_row(logprobs=0, temperature=0.0)).logprobs

    assert top is not None
    assert top.token_ids == (1,)
    assert top.logprobs == (top.logprob,)
    assert sample_one([0.0, 1.0], make_row()).logprobs is None


def test_greedy_leaves_nothing_to_chance() -> None:
    """After sampling, the distribution of a greedy choice is that choice."""
    row = make_row(temperature=0.0, logprobs=3, logprobs_after_sampling=True)
    top = sample_one([0.0, 1.0], row).logprobs

    assert top is not None
    assert (top.token_ids, top.logprobs, top.rank) == ((1,), (0.0,), 1)


def test_prompt_logprobs_report_given_tokens() -> None:
    """One report per row, whatever the number of rows; impossible tokens stay finite."""
    logits = random_logits(9, 30, 20_000, scale=1.0)
    logits[3, 7] = -math.inf
    targets = [7] * 30

    reports = NumpySampler().prompt_logprobs(logits, targets, 2)
    assert len(reports) == 30
    for report, row in zip(reports, logits, strict=True):
        best = np.argsort(-row, kind="stable")[:2].tolist()
        assert report.token_id == 7
        assert list(report.token_ids) == (best if 7 in best else [*best, 7])
        exact = row[7] - np.log(np.exp(row.astype(np.float64)).sum())
        assert report.logprob == pytest.approx(max(exact, LOWEST_LOGPROB), abs=1e-5)


# ------------------------------------------------------------------------------------- Mirostat


def test_a_replay_brings_mirostat_to_where_it_was() -> None:
    """A resumed row goes on exactly: the replay sees distributions and tokens, in two runs."""
    params: dict[str, Any] = {"mirostat_mode": 2, "mirostat_tau": 3.0, "presence_penalty": 0.5}
    sampler = NumpySampler()
    row = make_row((1, 2), seed=9, **params)
    rows_of_logits = random_logits(20, 20, 100)
    for logits in rows_of_logits:
        row.output_token_ids.append(sample_one(logits, row, sampler).token_id)
    outputs = row.output_token_ids

    resumed = make_row((1, 2), seed=9, **params)
    for first, last in [(0, 7), (7, 12)]:
        sampler.replay(rows_of_logits[first:last], resumed, outputs[first:last])
        resumed.output_token_ids.extend(outputs[first:last])
    for logits in rows_of_logits[12:]:
        resumed.output_token_ids.append(sample_one(logits, resumed, sampler).token_id)
    assert resumed.output_token_ids == outputs
    assert resumed.state["plan"].mirostat_mu == row.state["plan"].mirostat_mu


def test_a_replayed_token_outside_the_candidates_moves_nothing() -> None:
    """Under different numerics a replayed token may be impossible here."""
    row = make_row(mirostat_mode=2, mirostat_tau=1.0, banned_token_ids=(1,))
    NumpySampler().replay(np.array([[1.0, 0.0]], np.float32), row, [1])

    assert row.state["plan"].mirostat_mu == 2.0


@pytest.mark.parametrize(
    ("params", "needed"),
    [({}, False), ({"mirostat_mode": 2}, True), ({"mirostat_mode": 2, "temperature": 0.0}, False)],
)
def test_only_mirostat_needs_a_replay(params: dict[str, Any], needed: bool) -> None:
    """Everything else follows from the tokens."""
    assert NumpySampler().needs_replay(SamplingParams(max_tokens=1, **params)) is needed


def test_it_is_a_sampler() -> None:
    """The contract's protocol."""
    assert isinstance(NumpySampler(), Sampler)
