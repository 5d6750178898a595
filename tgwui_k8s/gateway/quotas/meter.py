"""`Meter`: one request against its key's quota, from the estimate to what it has really used."""

from __future__ import annotations

import math
import time
from collections.abc import Callable

from msgspec import Raw

from tgwui_k8s.errors import RateLimitedError
from tgwui_k8s.gateway.call import CHAT, COMPLETIONS, Call
from tgwui_k8s.gateway.http_connection import Headers
from tgwui_k8s.gateway.quotas.ledger import Demand, Ledger, LimitName, Outcome
from tgwui_k8s.gateway.quotas.quota import WINDOW_SECONDS, Quota, period_of

BYTES_PER_TOKEN = 4
"""English text in today's vocabularies; what is wrong about it is put right at the end."""

UNSTATED_TOKENS = 256
"""What a request without `max_tokens` is taken to generate, until it has."""

_GRACE_SECONDS = 30.0

_GENERATES = frozenset(
    {COMPLETIONS, CHAT, "/v1/messages", "/v1/responses", "/generate", "/invocations"}
)
_COMPUTES = _GENERATES | {"/v1/embeddings", "/v1/internal/logits"}
"""Other paths only count and translate: they cost a request, and no tokens."""

_WORDS: dict[LimitName, str] = {
    "requests": "{limit} requests per minute",
    "tokens": "{limit} tokens per minute",
    "concurrency": "{limit} requests at a time",
    "budget": "{limit} tokens per {period}",
}


class Meter:
    """`await reserve()`, answer the request, `await settle()`."""

    def __init__(
        self,
        ledger: Ledger,
        key_name: str,
        quota: Quota,
        call: Call,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._ledger = ledger
        self._call = call
        self._num_prompt_tokens = _estimated_prompt(call)
        seconds = max(0.0, call.deadline - call.arrival)
        self._demand = Demand(
            key_name,
            quota,
            call.span_id,
            self._num_prompt_tokens + _estimated_completion(call),
            period_of(quota.budget_period, clock()),
            seconds + _GRACE_SECONDS,
        )
        self._outcome: Outcome | None = None

    async def reserve(self) -> None:
        """Raises `RateLimitedError`."""
        outcome = self._outcome = await self._ledger.reserve(self._demand)
        if outcome.refused_by is not None:
            raise _refused(outcome.refused_by, self._demand, outcome.wait_seconds)

    async def settle(self, status: int | None) -> None:
        """The request is over; `status`: of its answer, None where there was none."""
        if self._outcome is not None and self._outcome.refused_by is None:
            await self._ledger.settle(self._demand, self._num_used(status))

    def headers(self) -> Headers:
        """What is left, in OpenAI's words."""
        outcome, quota = self._outcome, self._demand.quota
        if outcome is None:
            return []
        headers: Headers = []
        for name, limit, left in (
            (b"requests", quota.requests_per_minute, outcome.remaining_requests),
            (b"tokens", quota.tokens_per_minute, outcome.remaining_tokens),
        ):
            if limit is not None:
                seconds = (limit - left) * WINDOW_SECONDS / limit
                headers += [
                    (b"x-ratelimit-limit-" + name, b"%d" % limit),
                    (b"x-ratelimit-remaining-" + name, b"%d" % max(0, math.floor(left))),
                    (b"x-ratelimit-reset-" + name, duration(seconds).encode()),
                ]
        return headers

    def _num_used(self, status: int | None) -> int:
        """Tokens; where nobody has said how many, the estimate stands."""
        call = self._call
        if call.num_prompt_tokens is not None or call.num_completion_tokens is not None:
            prompt = call.num_prompt_tokens
            used = self._num_prompt_tokens if prompt is None else prompt
            return used + (call.num_completion_tokens or 0)
        if status is None:  # The client left before the answer began.
            return self._num_prompt_tokens if call.endpoint_names else 0
        return 0 if status >= 400 else self._demand.num_tokens


def duration(seconds: float) -> str:
    """As OpenAI writes it: 17ms, 1.5s, 6m0s."""
    if seconds < 1:
        return f"{math.ceil(max(seconds, 0.0) * 1000)}ms"
    if seconds < WINDOW_SECONDS:
        return f"{seconds:.3f}".rstrip("0").rstrip(".") + "s"
    minutes, rest = divmod(math.ceil(seconds), 60)
    return f"{minutes}m{rest}s"


def _estimated_prompt(call: Call) -> int:
    if call.path not in _COMPUTES:
        return 0
    asked = call.asked
    for member in (asked.messages, asked.prompt):
        if isinstance(member, Raw):
            return len(bytes(member)) // BYTES_PER_TOKEN + 1
    return len(call.body) // BYTES_PER_TOKEN + 1


def _estimated_completion(call: Call) -> int:
    if call.path not in _GENERATES:
        return 0
    asked = call.asked
    stated = (asked.max_completion_tokens, asked.max_tokens, asked.max_output_tokens)
    each = next((one for one in stated if type(one) is int and one >= 0), UNSTATED_TOKENS)
    num_choices = asked.n if type(asked.n) is int and asked.n > 0 else 1
    return each * num_choices


def _refused(limit: LimitName, demand: Demand, wait_seconds: float) -> RateLimitedError:
    quota = demand.quota
    numbers = {
        "requests": quota.requests_per_minute,
        "tokens": quota.tokens_per_minute,
        "concurrency": quota.max_concurrent_requests,
        "budget": quota.budget_tokens,
    }
    words = _WORDS[limit].format(limit=numbers[limit], period=quota.budget_period)
    asked = (
        f" This request needs up to {demand.num_tokens}." if limit in ("tokens", "budget") else ""
    )
    seconds = max(1, math.ceil(wait_seconds))
    return RateLimitedError(
        f"Rate limit reached for key '{demand.key_name}': {words}.{asked} "
        f"Please try again in {duration(seconds)}.",
        limit=limit,
        retry_after_seconds=seconds,
    )
