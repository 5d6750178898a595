"""Penalties, bias, bans, guidance and temperature: what each does to the logits."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.helpers import slow_samplers as slow
from tests.helpers.sampling_rows import make_row, probabilities, random_logits, sample_one
from tgwui_k8s.engine.sampler import NumpySampler
from tgwui_k8s.runtime.samplers.plan import MAX_DRY_PENALTY, sampler_order
from tgwui_k8s.sampling import SAMPLER_ORDER, SamplingParams

LOGITS = [2.0, 1.0, 0.0, -1.0, -2.0]


def assert_changes(changes: dict[int, float], prompt: tuple[int, ...] = (), **rest: Any) -> None:
    """The distribution is the softmax of LOGITS with these logits in the place of theirs."""
    changed = [changes.get(i, logit) for i, logit in enumerate(LOGITS)]
    expected = {i: p for i, p in enumerate(slow.softmax(changed)) if p > 0}
    assert probabilities(LOGITS, prompt, **rest) == pytest.approx(expected, rel=1e-4)


def test_repetition_penalty_divides_positive_and_multiplies_negative_logits() -> None:
    """Once per distinct token, of prompt and output alike."""
    changes = {0: 2.0 / 1.5, 3: -1.0 * 1.5}

    assert_changes(changes, (0, 0), output=(3, 3, 3), repetition_penalty=1.5)


def test_presence_and_frequency_penalties_count_generated_tokens_only() -> None:
    """OpenAI's rule: logit - presence - count * frequency; the prompt costs nothing."""
    assert_changes({0: 1.5}, (1, 2), output=(0, 0), presence_penalty=0.5)
    assert_changes({0: 0.8, 3: -1.6}, (1,), output=(0, 0, 3), frequency_penalty=0.6)
    assert_changes({0: 1.3}, (1,), output=(0, 0), presence_penalty=0.5, frequency_penalty=0.1)


def test_penalties_look_at_the_last_tokens_only() -> None:
    """With a range of 2 the tokens before the last two are forgotten."""
    window = {"repetition_penalty_range": 2}

    assert_changes({1: 0.5, 2: 0.0}, (0, 1), output=(2,), repetition_penalty=2.0, **window)
    assert_changes({3: -2.0}, (), output=(0, 3, 3), frequency_penalty=0.5, **window)
    assert_changes({0: 1.0, 2: -1.0}, (), output=(0, 2, 2), presence_penalty=1.0)


def test_encoder_repetition_penalty_raises_tokens_of_the_prompt() -> None:
    """The inverse of the repetition penalty, for the prompt alone."""
    assert_changes({0: 3.0, 3: -1 / 1.5}, (0, 3), output=(1,), encoder_repetition_penalty=1.5)


def test_no_repeat_ngram_bans_what_would_complete_a_known_ngram() -> None:
    """After 0 1 came 2: after another 0 1 it must not; single tokens at size 1."""
    assert set(probabilities(LOGITS, (0, 1, 2), output=(0, 1), no_repeat_ngram_size=3)) == {
        0, 1, 3, 4,
    }  # fmt: skip
    assert set(probabilities(LOGITS, (0, 1), output=(4,), no_repeat_ngram_size=1)) == {2, 3}
    assert len(probabilities(LOGITS, (0, 1), output=(0,), no_repeat_ngram_size=50)) == 5


def test_an_ngram_ban_holds_even_where_truncation_left_nothing_else() -> None:
    """It comes after top_p by default; the next best token is taken then."""
    assert set(probabilities([9.0, 1.0, 0.0], (0,), top_p=0.5, no_repeat_ngram_size=1)) == {1}


@pytest.mark.parametrize(
    ("tokens", "params", "penalties"),
    [
        # 3 0 1 was followed by 2; the sequence ends in 3 0 1: a match of 3 tokens.
        ((3, 0, 1, 2, 3, 0, 1), {}, {2: 0.8 * 1.75**1}),
        ((3, 0, 1, 2, 3, 0, 1), {"dry_allowed_length": 3}, {2: 0.8}),
        ((3, 0, 1, 2, 3, 0, 1), {"dry_allowed_length": 4}, {}),
        # The longest of two matches counts: 1 2 -> 0 and 1 2 0 4 1 2 -> 0.
        ((1, 2, 0, 4, 1, 2, 0, 4, 1, 2), {"dry_allowed_length": 1}, {0: 0.8 * 1.75**5}),
        # A breaker ends the match, and is never penalised itself.
        ((3, 0, 1, 2, 3, 0, 1), {"dry_sequence_breakers": (0,), "dry_allowed_length": 1}, {2: 0.8}),
        ((3, 0, 1, 2, 3, 0, 1), {"dry_sequence_breakers": (2,)}, {}),
        ((3, 0, 1, 2, 3, 0, 1), {"dry_sequence_breakers": (1,)}, {}),
        ((), {}, {}),
    ],
)
def test_dry_penalises_what_continues_a_repeated_run(
    tokens: tuple[int, ...], params: dict[str, Any], penalties: dict[int, float]
) -> None:
    """multiplier * base ** (match length - allowed length), wherever the prompt ends."""
    changes = {i: LOGITS[i] - penalty for i, penalty in penalties.items()}
    for end in range(len(tokens) + 1):
        assert_changes(changes, tokens[:end], output=tokens[end:], dry_multiplier=0.8, **params)


def test_the_dry_penalty_is_bounded() -> None:
    """A thousand repeats overflow nothing; the token stays possible if nothing else is."""
    row = make_row([0] * 1000, dry_multiplier=5.0, dry_base=4.0, banned_token_ids=(1,))

    assert sample_one([0.0, 5.0], row).token_id == 0
    assert row.state["plan"].edit("dry").values.tolist() == [-MAX_DRY_PENALTY]


def test_logit_bias_is_added() -> None:
    """OpenAI's `logit_bias`."""
    assert_changes({2: 2.5, 4: -3.0}, logit_bias={2: 2.5, 4: -1.0})


@pytest.mark.parametrize(
    ("rest", "possible"),
    [
        ({"banned_token_ids": (0, 3)}, {1, 2, 4}),
        ({"ban_eos_token": True}, {0, 2, 3}),
        ({"min_tokens": 2, "output": (0, 0)}, {0, 1, 2, 3, 4}),
        ({"min_tokens": 3, "output": (0, 0)}, {0, 2, 3}),
        ({"min_tokens": 3, "stop_token_ids": (2,)}, {0, 3}),
        ({"min_tokens": 3, "stop_token_ids": (2,), "ignore_eos": True}, {0, 1, 3, 4}),
        ({"banned_token_ids": (0, 1, 2, 3, 4)}, {0}),
        ({"banned_token_ids": (77,), "logit_bias": {99: 5.0}}, {0, 1, 2, 3, 4}),
    ],
)
def test_bans(rest: dict[str, Any], possible: set[int]) -> None:
    """Banned ids, the ends (1 and 4) with `ban_eos_token`, ends and stops before `min_tokens`."""
    assert set(probabilities(LOGITS, eos=(1, 4), **rest)) == possible


def test_nothing_is_sampled_outside_the_grammar_s_mask() -> None:
    """Not by bias, nor where bans leave nothing: then the mask's best token is taken."""
    allowed = np.array([False, False, True, True, False])

    assert set(probabilities(LOGITS, allowed=allowed, logit_bias={0: 100.0})) == {2, 3}
    assert set(probabilities(LOGITS, allowed=allowed, banned_token_ids=(2, 3))) == {2}
    assert set(probabilities(LOGITS, allowed=allowed, temperature=0.0)) == {2}
    assert set(probabilities(LOGITS, allowed=allowed[:3])) == {2}
    assert sample_one(LOGITS, make_row(allowed=np.zeros(5, bool))).token_id == -1


def test_guidance_leads_away_from_the_negative_prompt() -> None:
    """negative + scale * (positive - negative), on log probabilities."""
    logits = random_logits(1, 3, 6)
    row = make_row(guidance_scale=2.5, logprobs=6)
    plain = make_row(logprobs=6)

    guided, unguided = NumpySampler().sample(logits, [row, plain], [2, 2], [0, None])
    positive = np.log(slow.softmax(logits[2].tolist()))
    negative = np.log(slow.softmax(logits[0].tolist()))
    expected = slow.softmax((negative + 2.5 * (positive - negative)).tolist())
    assert guided.logprobs is not None
    assert unguided.logprobs is not None
    got = dict(zip(guided.logprobs.token_ids, guided.logprobs.logprobs, strict=True))
    assert [got[i] for i in range(6)] == pytest.approx(np.log(expected), abs=1e-5)
    assert unguided.logprobs.logprob == pytest.approx(positive[unguided.token_id], abs=1e-5)


def test_guidance_keeps_what_the_model_excludes() -> None:
    """A logit of -inf on either side stays out."""
    logits = np.array([[1.0, -math.inf, 2.0], [0.0, -math.inf, -math.inf]], np.float32)
    row = make_row(guidance_scale=3.0, seed=4)

    assert NumpySampler().sample(logits, [row], [0], [1])[0].token_id == 0


@settings(derandomize=True, deadline=None, max_examples=50)
@given(seed=st.integers(0, 10**6), temperature=st.floats(0.05, 5.0))
def test_temperature_divides_the_logits(seed: int, temperature: float) -> None:
    """softmax(logits / temperature)."""
    logits = random_logits(seed, 20)

    left = probabilities(logits, temperature=temperature)
    expected = slow.softmax((logits / temperature).tolist())
    assert left == pytest.approx(dict(enumerate(expected)), rel=1e-4, abs=1e-30)


@pytest.mark.parametrize("exponent", [0.5, 1.0, 2.0])
def test_dynamic_temperature_grows_with_the_entropy(exponent: float) -> None:
    """low + (high - low) * (H / H_max) ** exponent; a uniform distribution gets `high`."""
    p = slow.softmax(LOGITS)
    share = slow.entropy(p) / math.log(5)
    temperature = 0.5 + 1.0 * share**exponent
    params = {"dynamic_temperature": True, "dynatemp_low": 0.5, "dynatemp_high": 1.5}

    left = probabilities(LOGITS, dynatemp_exponent=exponent, **params)
    expected = slow.softmax([logit / temperature for logit in LOGITS])
    assert list(left.values()) == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("curve", [1.0, 2.0, 3.0])
def test_quadratic_sampling_bends_the_logits(curve: float) -> None:
    """With distance d from the largest: -factor * ((3 - c) / 2 * d**2 - (c - 1) / 2 * d**3)."""
    factor, square, cubic = 0.3, (3 - curve) / 2, (curve - 1) / 2
    bent = [factor * (cubic * (x - 2.0) ** 3 - square * (x - 2.0) ** 2) for x in LOGITS]

    left = probabilities(LOGITS, smoothing_factor=factor, smoothing_curve=curve)
    assert list(left.values()) == pytest.approx(slow.softmax(bent), rel=1e-5)


def test_the_order_is_the_default_one_after_what_the_request_names() -> None:
    """Named samplers come first, in that order; `temperature_last` moves all three temperatures."""
    params = SamplingParams(max_tokens=1, sampler_priority=("min_p", "temperature"))
    assert sampler_order(params)[:2] == ("min_p", "temperature")
    assert sampler_order(params)[2:] == tuple(
        name for name in SAMPLER_ORDER if name not in ("min_p", "temperature")
    )
    last = sampler_order(SamplingParams(max_tokens=1, temperature_last=True))
    assert last[-3:] == ("temperature", "dynamic_temperature", "quadratic_sampling")
    assert sampler_order(SamplingParams(max_tokens=1)) == SAMPLER_ORDER


@pytest.mark.parametrize("tiny", [1e-4, 1e-7, 1e-300])
def test_a_tiny_temperature_is_as_good_as_greedy(tiny: float) -> None:
    """Quotients do not overflow."""
    left = probabilities([300.0, 299.0, -300.0], temperature=tiny)
    assert left == {0: 1.0, 1: 0.0, 2: 0.0}
