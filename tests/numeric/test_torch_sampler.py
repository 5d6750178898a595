"""The torch sampler chooses what the NumPy sampler chooses, and reports the same numbers."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from tests.helpers.sampling_rows import make_row, random_logits
from tgwui_k8s.contract import SampledToken, Sampler, SamplingRow, TopLogprobs
from tgwui_k8s.engine.sampler import NumpySampler
from tgwui_k8s.engine.samplers import truncation
from tgwui_k8s.runtime.sampler import TorchSampler
from tgwui_k8s.runtime.samplers import torch_truncation
from tgwui_k8s.sampling import SAMPLER_ORDER

VOCAB_SIZE = 60
TOKEN = st.integers(0, VOCAB_SIZE - 1)


def sometimes(strategy: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    """The strategy's value, or None: the parameter stays neutral."""
    return st.none() | strategy


PARAMETERS = st.fixed_dictionaries(
    {
        "temperature": sometimes(st.sampled_from([0.0, 0.3, 0.9, 2.0])),
        "dynamic_temperature": sometimes(st.just(True)),
        "dynatemp_low": sometimes(st.floats(0.1, 1.0)),
        "dynatemp_high": sometimes(st.floats(1.0, 3.0)),
        "smoothing_factor": sometimes(st.floats(0.05, 2.0)),
        "smoothing_curve": sometimes(st.floats(1.0, 3.0)),
        "top_p": sometimes(st.floats(0.0, 1.0)),
        "top_k": sometimes(st.integers(0, 80)),
        "min_p": sometimes(st.floats(0.0, 1.0)),
        "typical_p": sometimes(st.floats(0.05, 1.0)),
        "tfs": sometimes(st.floats(0.0, 1.0)),
        "top_a": sometimes(st.floats(0.0, 1.0)),
        "epsilon_cutoff": sometimes(st.floats(0.0, 2000.0)),
        "eta_cutoff": sometimes(st.floats(0.0, 2000.0)),
        "top_n_sigma": sometimes(st.floats(0.0, 3.0)),
        "xtc_threshold": sometimes(st.floats(0.0, 0.5)),
        "xtc_probability": sometimes(st.floats(0.0, 1.0)),
        "mirostat_mode": sometimes(st.just(2)),
        "mirostat_tau": sometimes(st.floats(0.5, 6.0)),
        "presence_penalty": sometimes(st.floats(-2.0, 2.0)),
        "frequency_penalty": sometimes(st.floats(-2.0, 2.0)),
        "repetition_penalty": sometimes(st.floats(0.5, 2.0)),
        "repetition_penalty_range": sometimes(st.integers(0, 6)),
        "encoder_repetition_penalty": sometimes(st.floats(0.5, 2.0)),
        "no_repeat_ngram_size": sometimes(st.integers(1, 3)),
        "dry_multiplier": sometimes(st.floats(0.1, 3.0)),
        "dry_sequence_breakers": sometimes(st.lists(TOKEN, max_size=2).map(tuple)),
        "logit_bias": sometimes(st.dictionaries(TOKEN, st.floats(-5.0, 5.0), max_size=4)),
        "banned_token_ids": sometimes(st.lists(TOKEN, max_size=5).map(tuple)),
        "ban_eos_token": sometimes(st.just(True)),
        "min_tokens": sometimes(st.integers(0, 3)),
        "temperature_last": sometimes(st.just(True)),
        "sampler_priority": sometimes(
            st.lists(st.sampled_from(SAMPLER_ORDER), unique=True).map(tuple)
        ),
        "guidance_scale": sometimes(st.floats(0.5, 3.0)),
        "logprobs": sometimes(st.integers(0, 6)),
        "logprobs_after_sampling": sometimes(st.just(True)),
        "seed": st.integers(-(2**63), 2**63 - 1),
    }
).map(lambda drawn: {name: value for name, value in drawn.items() if value is not None})

REQUESTS = st.lists(
    st.fixed_dictionaries(
        {
            "params": PARAMETERS,
            "prompt": st.lists(st.integers(0, 8), max_size=12),
            "is_guided": st.booleans(),
            "mask_seed": sometimes(st.integers(0, 99)),
        }
    ),
    min_size=1,
    max_size=4,
)


def make_batch(requests: list[dict[str, Any]]) -> list[SamplingRow]:
    """Rows for the drawn requests."""
    return [
        make_row(
            request["prompt"],
            eos=(3, 5),
            allowed=None
            if request["mask_seed"] is None
            else np.random.default_rng(request["mask_seed"]).random(VOCAB_SIZE) < 0.5,
            **request["params"],
        )
        for request in requests
    ]


def step(
    sampler: Sampler,
    logits: NDArray[np.float32] | torch.Tensor,
    rows: list[SamplingRow],
    requests: list[dict[str, Any]],
) -> list[SampledToken]:
    """One step in which row i has logits 2 i, and 2 i + 1 where it is guided."""
    guidance = [2 * i + 1 if request["is_guided"] else None for i, request in enumerate(requests)]
    sampled = sampler.sample(logits, rows, [2 * i for i in range(len(rows))], guidance)
    for row, token in zip(rows, sampled, strict=True):
        row.output_token_ids.append(token.token_id)
    return sampled


def assert_alike(one: TopLogprobs | None, other: TopLogprobs | None) -> None:
    """The same tokens and ranks, the same numbers within rounding."""
    if one is None or other is None:
        assert one is other
        return
    assert (one.token_id, one.rank, one.token_ids) == (other.token_id, other.rank, other.token_ids)
    assert one.logprobs == pytest.approx(other.logprobs, abs=1e-5, rel=1e-5)
    assert one.logprob == one.logprobs[one.token_ids.index(one.token_id)]
    assert other.logprob == other.logprobs[other.token_ids.index(other.token_id)]


@settings(derandomize=True, deadline=None, max_examples=150)
@given(requests=REQUESTS, seed=st.integers(0, 10**6), coarse=st.booleans())
def test_torch_equals_numpy(requests: list[dict[str, Any]], seed: int, coarse: bool) -> None:
    """Random batches, random parameters, three steps; rounded logits as well, which have ties."""
    in_numpy, in_torch = make_batch(requests), make_batch(requests)
    for number in range(3):
        logits = random_logits(seed + number, 2 * len(requests), VOCAB_SIZE)
        if coarse:
            logits = np.round(2 * logits) / np.float32(2)
        expected = step(NumpySampler(), logits, in_numpy, requests)
        found = step(TorchSampler(), torch.from_numpy(logits), in_torch, requests)
        assert [token.token_id for token in found] == [token.token_id for token in expected]
        for one, other in zip(expected, found, strict=True):
            assert_alike(one.logprobs, other.logprobs)


@pytest.mark.parametrize(
    "params",
    [
        {},
        {"top_p": 0.9},
        {"top_p": 0.5, "temperature": 0.5},
        {"top_k": 50, "min_p": 0.01},
        {"top_k": 9000},
        {"typical_p": 0.9, "tfs": 0.95, "no_repeat_ngram_size": 1},
        {"min_p": 0.02, "encoder_repetition_penalty": 1.3, "xtc_probability": 1.0},
        {"temperature": 0.0, "logprobs": 20},
    ],
)
@pytest.mark.parametrize("scale", [0.3, 3.0])
def test_torch_equals_numpy_on_a_large_vocabulary(params: dict[str, Any], scale: float) -> None:
    """Windows, blocks and packed candidates on 20,000 tokens, flat and peaked."""
    logits = random_logits(7, 6, 20_000, scale=scale)
    rows = [make_row((5, 6, 7), eos=(2,), seed=seed, **params) for seed in range(6)]

    expected = NumpySampler().sample(logits, rows, range(6), [None] * 6)
    for row in rows:
        row.state.clear()
    found = TorchSampler().sample(torch.from_numpy(logits), rows, range(6), [None] * 6)
    assert [token.token_id for token in found] == [token.token_id for token in expected]
    for one, other in zip(expected, found, strict=True):
        assert_alike(one.logprobs, other.logprobs)


@pytest.mark.parametrize("mass", [0.0, 1e-6, 0.5, 0.999999])
@pytest.mark.parametrize("spread", [0.0, 0.3, 20.0])
def test_the_edge_of_a_nucleus_is_numpy_s(mass: float, spread: float) -> None:
    """Found without sorting: with ties, among equals, with candidates removed before."""
    logits = np.round(4 * spread * random_logits(8, 3, 3000)) / np.float32(4)
    logits[:, ::3] = -np.inf
    found = torch.from_numpy(logits.copy())
    share = np.full((3, 1), mass, np.float32)

    with np.errstate(all="ignore"):
        truncation.top_p(logits, share)
    torch_truncation.top_p(found, torch.from_numpy(share))
    assert np.array_equal(found.numpy(), logits)


def test_prompt_logprobs_equal_numpy_s() -> None:
    """One report per row, with ties by token id."""
    logits = np.round(random_logits(3, 40, 500))
    targets = list(range(40))

    expected = NumpySampler().prompt_logprobs(logits, targets, 4)
    found = TorchSampler().prompt_logprobs(torch.from_numpy(logits), targets, 4)
    for one, other in zip(expected, found, strict=True):
        assert_alike(one, other)


def test_negative_zero_ties_with_zero() -> None:
    """The integer keys that rank logits order like the numbers."""
    logits = torch.tensor([[0.0, -0.0, -5.0, 3.0, -1.0]])

    report = TorchSampler().prompt_logprobs(logits, [1], 5)[0]
    assert report.token_ids == (3, 0, 1, 4, 2)
    assert report.rank == 3


def test_a_replay_equals_numpy_s() -> None:
    """Mirostat's mu after a replay."""
    logits = random_logits(5, 10, 80)
    tokens = list(range(10))
    rows = [make_row((1, 2), mirostat_mode=2, mirostat_tau=3.0) for _ in range(2)]

    NumpySampler().replay(logits, rows[0], tokens)
    TorchSampler().replay(torch.from_numpy(logits), rows[1], tokens)
    assert rows[1].state["plan"].mirostat_mu == pytest.approx(
        rows[0].state["plan"].mirostat_mu, abs=1e-5
    )


@pytest.mark.parametrize("params", [{}, {"temperature": 0.0}, {"top_p": 0.9, "logprobs": 3}])
def test_a_broken_row_fails_alone(params: dict[str, Any]) -> None:
    """NaN in one row: token id -1 there, nothing changes elsewhere."""
    logits = torch.from_numpy(random_logits(6, 3, 30))
    expected = TorchSampler().sample(logits, [make_row(**params)] * 3, [0, 1, 2], [None] * 3)
    logits[1, 17] = torch.nan

    first, broken, last = TorchSampler().sample(
        logits, [make_row(**params) for _ in range(3)], [0, 1, 2], [None] * 3
    )
    assert (first, last) == (expected[0], expected[2])
    assert broken == SampledToken(-1)


def test_bfloat16_logits_and_torch_masks_are_taken() -> None:
    """What a model computes in bf16 is widened; a grammar's mask may be a tensor."""
    logits = torch.from_numpy(random_logits(6, 2, 30)).to(torch.bfloat16)
    allowed = torch.zeros(30, dtype=torch.bool)
    allowed[[4, 9]] = True
    rows = [make_row(logprobs=1), make_row(allowed=allowed)]

    one, other = TorchSampler().sample(logits, rows, [0, 1], [None, None])
    assert one.logprobs is not None
    assert other.token_id in (4, 9)


def test_it_is_a_sampler_that_leaves_the_logits_alone() -> None:
    """The contract's protocol; the caller's tensor is read only."""
    logits = torch.from_numpy(random_logits(6, 1, 30))
    before = logits.clone()
    sampler = TorchSampler()

    sampler.sample(logits, [make_row(top_p=0.5, logit_bias={1: 2.0})], [0], [None])
    assert isinstance(sampler, Sampler)
    assert torch.equal(logits, before)
