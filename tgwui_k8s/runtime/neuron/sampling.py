"""One call of a library's own sampling loop, in exact types."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from tgwui_k8s.sampling import SamplingParams

_SEED_MASK = (1 << 63) - 1


class Cancelled(Exception):  # noqa: N818 - no error: it carries a wish through the library
    """Raised in a streamer to end the library's loop."""


@dataclass(frozen=True, kw_only=True)
class SampleCall:
    """What to generate. `cancelled` is set by another thread."""

    prompt: tuple[int, ...]
    max_tokens: int
    top_k: int | None
    """None: all tokens."""
    top_p: float
    temperature: float
    end_token_ids: tuple[int, ...]
    no_repeat_ngram_size: int
    seed: int
    cancelled: threading.Event = field(default_factory=threading.Event)

    @classmethod
    def make(
        cls,
        prompt: Sequence[int],
        params: SamplingParams,
        *,
        choice: int,
        eos_token_ids: Sequence[int],
    ) -> SampleCall:
        """Our parameters as the library wants them: greedy is `top_k` 1, numbers are floats."""
        is_greedy = params.is_greedy or params.top_p == 0.0
        ends = (
            params.stop_token_ids if params.ignore_eos else (*eos_token_ids, *params.stop_token_ids)
        )
        return cls(
            prompt=tuple(int(token_id) for token_id in prompt),
            max_tokens=int(params.max_tokens),
            top_k=1 if is_greedy else int(params.top_k) or None,
            top_p=1.0 if is_greedy else float(params.top_p),
            temperature=1.0 if is_greedy else float(params.temperature),
            end_token_ids=tuple(dict.fromkeys(ends)),
            no_repeat_ngram_size=int(params.no_repeat_ngram_size),
            seed=(params.seed + choice) & _SEED_MASK,
        )


class SamplingModel(Protocol):
    """A model with a sampling loop of its own. One call at a time."""

    @property
    def ends_at_tokens(self) -> bool:
        """False: end tokens mean nothing to it, and it runs to the full length."""
        ...

    @property
    def lacking(self) -> tuple[str, ...]:
        """Fields of `SamplingParams` it does not honour, beside those that no loop does."""
        ...

    def sample(self, call: SampleCall, on_token: Callable[[int], None]) -> None:
        """Generate; returns when the text has ended or `call.cancelled` is set."""
        ...

    def close(self) -> None:
        """Forget the model."""
        ...
