"""The load generator's arithmetic: what it would be embarrassing to get wrong in a table."""

from __future__ import annotations

from array import array
from itertools import islice

import pytest

from benchmarks.load.arrivals import constant, poisson
from benchmarks.load.figures import Objectives, Spread, figures
from benchmarks.load.prompts import random_prompts
from benchmarks.load.recording import Recording


def recording(
    ttft: float, *gaps: float, started: float = 100.0, error: str | None = None
) -> Recording:
    """A request whose chunks came with these distances and were followed by the end at once."""
    made = Recording(started)
    made.first = started + ttft
    made.gaps = array("d", gaps)
    made.num_chunks = 1 + len(gaps)
    made.last = made.ended = made.first + sum(gaps)
    made.error = error
    return made


def test_percentiles_interpolate_between_the_nearest_values() -> None:
    """Of 1 … 101 ms the 50th, 90th and 99th percentiles are 51, 91 and 100."""
    spread = Spread.of(number / 1000 for number in range(1, 102))

    assert spread == Spread(mean=51.0, p50=51.0, p90=91.0, p99=100.0, max=101.0)
    assert Spread.of([0.010, 0.020]) == Spread(15.0, 15.0, 19.0, 19.9, 20.0)


def test_nothing_has_no_spread() -> None:
    """No values give no figure instead of a zero."""
    assert Spread.of([]) is None


def test_rates_are_over_the_time_from_the_first_start_to_the_last_end() -> None:
    """Two overlapping requests of three chunks each within two seconds."""
    found = figures(
        [recording(0.5, 0.25, 0.25), recording(0.5, 0.25, 0.25, started=101.0)], Objectives()
    )

    assert found.duration_s == 2.0
    assert (found.requests_per_s, found.output_tokens_per_s, found.chunks_per_s) == (1.0, 3.0, 3.0)
    assert found.tokens_counted_by == ["chunks"]
    assert found.ttft_ms is not None
    assert found.ttft_ms.p50 == 500.0
    assert found.e2e_ms is not None
    assert found.e2e_ms.max == 1000.0


def test_time_per_token_leaves_the_first_token_out() -> None:
    """TPOT divides the time after the first token by the tokens after it, however they came."""
    made = recording(2.0, 0.3, 0.1)
    made.take(b'data: {"choices":[],"usage":{"prompt_tokens":7,"completion_tokens":5}}\n\n')

    assert made.num_tokens == 5
    assert made.tpot == pytest.approx(0.1)
    assert recording(2.0).tpot is None


def test_failed_requests_count_as_errors_and_nothing_else() -> None:
    """Their latencies are nobody's, and goodput is a share of all requests."""
    failed = [recording(9.0, error="timeout"), recording(9.0, error="timeout")]
    found = figures([recording(0.1, 0.1), *failed], Objectives())

    assert found.errors == {"timeout": 2}
    assert found.num_completed == 1
    assert found.ttft_ms is not None
    assert found.ttft_ms.max == 100.0
    assert found.good_share == pytest.approx(1 / 3, abs=1e-4)


@pytest.mark.parametrize(
    ("objectives", "share"),
    [
        (Objectives(), 1.0),
        (Objectives(ttft_ms=150), 0.5),
        (Objectives(ttft_ms=100), 0.5),
        (Objectives(tpot_ms=40), 0.5),
        (Objectives(ttft_ms=150, tpot_ms=40), 0.0),
        (Objectives(itl_ms=45), 0.5),
        (Objectives(e2e_ms=285), 0.5),
    ],
)
def test_good_requests_keep_every_objective(objectives: Objectives, share: float) -> None:
    """One request begins early and goes on slowly, the other one the other way around."""
    early_and_slow = recording(0.1, 0.04, 0.04, 0.1)
    late_and_fast = recording(0.2, 0.03, 0.03, 0.04)

    found = figures([early_and_slow, late_and_fast], objectives)

    assert found.good_share == share


def test_no_request_gives_figures_without_values() -> None:
    """An empty run divides by nothing."""
    found = figures([], Objectives())

    assert (found.duration_s, found.requests_per_s, found.ttft_ms) == (0.0, 0.0, None)


def test_constant_arrivals_are_evenly_spaced() -> None:
    """Four a second come at 0, 250, 500 … ms."""
    assert list(islice(constant(4.0), 3)) == [0.0, 0.25, 0.5]


def test_poisson_arrivals_repeat_and_keep_their_rate() -> None:
    """A seed gives the same times again; their mean distance is the inverse of the rate."""
    times = list(islice(poisson(5.0, seed=1), 20_000))

    assert times == list(islice(poisson(5.0, seed=1), 20_000))
    assert times == sorted(times)
    assert times[-1] / len(times) == pytest.approx(0.2, rel=0.03)


def test_prompts_have_their_length_and_differ_behind_what_they_share() -> None:
    """The shared words come first, then a word that no other prompt has there."""
    prompts = [text.split() for text in random_prompts(50, 20, seed=3, num_shared_words=5)]

    assert {len(words) for words in prompts} == {20}
    assert len({tuple(words[:5]) for words in prompts}) == 1
    assert len({words[5] for words in prompts}) == 50
