"""When an endpoint is left alone, and what is tried again."""

from __future__ import annotations

from random import Random

import pytest

from tgwui_k8s.gateway.breaker import FAILURES_TO_OPEN, FIRST_OPEN_SECONDS, Breaker
from tgwui_k8s.gateway.failures import (
    BrokenFramingError,
    ConnectFailedError,
    ConnectionLostError,
    EndpointError,
    ExchangeError,
    PhaseTimeoutError,
)
from tgwui_k8s.gateway.retry import (
    RetryBudget,
    backoff_seconds,
    is_endpoints_fault,
    is_retryable,
)


def opened(now: float = 0.0) -> Breaker:
    """A breaker that has just opened."""
    breaker = Breaker()
    for _ in range(FAILURES_TO_OPEN):
        assert breaker.allows(now)
        breaker.fail(now)
    return breaker


def test_it_opens_after_failures_in_a_row_only() -> None:
    """A success in between begins the count anew."""
    breaker = Breaker()
    for _ in range(5):
        for _ in range(FAILURES_TO_OPEN - 1):
            breaker.fail(0.0)
        breaker.succeed()
    assert breaker.state(0.0) == "closed"
    assert opened().state(0.0) == "open"


def test_half_open_lets_one_through_at_a_time() -> None:
    """The trial decides: closed, or open for twice as long."""
    breaker, later = opened(), FIRST_OPEN_SECONDS
    assert not breaker.allows(later - 0.01)
    assert breaker.allows(later)
    breaker.begin(later)
    assert not breaker.allows(later)
    breaker.fail(later)
    assert not breaker.allows(later + 1.9 * FIRST_OPEN_SECONDS)
    assert breaker.allows(later + 2 * FIRST_OPEN_SECONDS)
    breaker.begin(9.0)
    breaker.succeed()
    assert breaker.state(9.0) == "closed"
    assert breaker.open_seconds == FIRST_OPEN_SECONDS


def test_late_failures_of_old_requests_do_not_keep_it_open() -> None:
    """Requests that were under way when it opened say nothing new."""
    breaker = opened()
    until = breaker.open_until
    for _ in range(10):
        breaker.fail(0.1)
    assert breaker.open_until == until


def test_a_trial_whose_client_left_is_no_verdict() -> None:
    """The next request is the trial."""
    breaker = opened()
    breaker.begin(1.0)
    assert not breaker.allows(1.0)
    breaker.give_up()
    assert breaker.allows(1.0)


@pytest.mark.parametrize(
    ("error", "is_tried_again", "is_fault"),
    [
        (ConnectFailedError(""), True, True),
        (ConnectionLostError(""), True, True),
        (BrokenFramingError(""), True, True),
        (PhaseTimeoutError("connect", 1), True, True),
        (PhaseTimeoutError("first_byte", 1), True, True),
        (PhaseTimeoutError("total", 1), False, False),
        (EndpointError(408), True, False),
        (EndpointError(429), True, False),
        (EndpointError(503), True, False),
        (EndpointError(529), True, False),
        (EndpointError(502), True, True),
        (EndpointError(400), False, False),
        (EndpointError(500), False, True),
        (EndpointError(500, is_retryable=True), True, True),
    ],
)
def test_what_is_tried_again_and_who_is_blamed(
    error: ExchangeError, is_tried_again: bool, is_fault: bool
) -> None:
    """A full queue is no fault; the request's own fault is not tried again."""
    assert is_retryable(error) is is_tried_again
    assert is_endpoints_fault(error) is is_fault


def test_retry_after_is_honoured_within_reason() -> None:
    """The wait grows with the tries, is jittered, and follows the endpoint's wish up to a limit."""
    plain, random = ConnectionLostError(""), Random(0)
    assert backoff_seconds(0, plain, random) < backoff_seconds(4, plain, random)
    assert 0.8 <= backoff_seconds(0, EndpointError(503, retry_after_seconds=1), random) <= 1.2
    assert backoff_seconds(0, EndpointError(503, retry_after_seconds=999), random) < 3


def test_the_budget_keeps_retries_from_doubling_the_load() -> None:
    """When everything fails, retries are a fifth of the requests, plus a few a second."""
    budget, num_retries = RetryBudget(largest=200), 0
    for number in range(10_000):
        budget.note_request()
        num_retries += budget.take(now=number / 1000)
    assert 2000 < num_retries < 2600
