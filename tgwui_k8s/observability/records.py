"""What is known of a generation once it is over: plain data, from the routes to metrics and log.

All times are seconds on the API process's monotonic clock, except `queue_seconds`, which the
engine measured on its own.
"""

from __future__ import annotations

from dataclasses import dataclass

CLIENT_CLOSED_REQUEST = 499


@dataclass(frozen=True, slots=True, kw_only=True)
class RequestRecord:
    """One request on a generation route, however it ended."""

    route: str
    """The path without a prefix: `/v1/completions`."""
    model: str
    """The name the model is served under."""
    status: int
    """The HTTP status it would have without streaming; 499 where the client went away."""
    finish_reasons: tuple[str, ...]
    """Of every choice; `abort` or `error` where it did not come to its end."""
    num_prompt_tokens: int
    num_completion_tokens: int
    num_cached_tokens: int = 0
    """Prompt tokens that came from the prefix cache."""
    queue_seconds: float | None = None
    """From arrival in the engine to the first step."""
    prefill_seconds: float | None = None
    """From leaving the queue to the first token."""
    decode_seconds: float | None = None
    """From the first token to the last."""
    ttft_seconds: float | None = None
    """From arrival, tokenizing and queueing included, to the first token."""
    e2e_seconds: float = 0.0
    """From arrival to the end."""

    @property
    def is_aborted(self) -> bool:
        """True where the client went away before the end."""
        return self.status == CLIENT_CLOSED_REQUEST

    def log_fields(self) -> dict[str, object]:
        """The record as fields of a log line."""
        reasons = tuple(dict.fromkeys(self.finish_reasons))
        fields: dict[str, object] = {
            "route": self.route,
            "model": self.model,
            "status": self.status,
            "finish_reason": reasons[0] if len(reasons) == 1 else reasons,
            "prompt_tokens": self.num_prompt_tokens,
            "completion_tokens": self.num_completion_tokens,
            "duration_s": round(self.e2e_seconds, 6),
        }
        if self.ttft_seconds is not None:
            fields["ttft_s"] = round(self.ttft_seconds, 6)
        return fields
