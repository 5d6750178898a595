"""What the steps have to tell about each request, until somebody takes it."""

from __future__ import annotations

from tgwui_k8s.contract import FinishReason, TokenDelta, TopLogprobs
from tgwui_k8s.engine.messages import RequestDeltas
from tgwui_k8s.engine.request import Sequence


class Answers:
    """Deltas by request, in the order in which they arose."""

    def __init__(self) -> None:
        self._deltas: dict[str, list[TokenDelta]] = {}

    def __bool__(self) -> bool:
        return bool(self._deltas)

    def tell(
        self,
        sequence: Sequence,
        *,
        finish_reason: FinishReason | None,
        token_ids: tuple[int, ...] = (),
        logprobs: tuple[TopLogprobs, ...] = (),
        stop_token_id: int | None = None,
        error: tuple[str, str] | None = None,
    ) -> None:
        """Add a delta of a sequence; `error` is what to tell the client, and its code.

        The first one also says what is known of the prompt.
        """
        request = sequence.request
        is_first = not sequence.has_answered
        sequence.has_answered = True
        prompt_logprobs = None
        if is_first and sequence.index == 0 and request.source.params.prompt_logprobs is not None:
            prompt_logprobs = tuple(request.prompt_logprobs)
        queue_seconds = None
        if is_first and request.first_scheduled_time is not None:
            queue_seconds = request.first_scheduled_time - request.arrival_time
        delta = TokenDelta(
            index=sequence.index,
            token_ids=token_ids,
            finish_reason=finish_reason,
            stop_token_id=stop_token_id,
            logprobs=logprobs,
            prompt_logprobs=prompt_logprobs,
            num_cached_tokens=sequence.num_cached_tokens if is_first else 0,
            queue_seconds=queue_seconds,
            error=None if error is None else error[0],
            error_code=None if error is None else error[1],
        )
        self._deltas.setdefault(request.request_id, []).append(delta)

    def drop(self, request_id: str) -> None:
        """Forget what a request has not been told yet."""
        self._deltas.pop(request_id, None)

    def take(self) -> list[RequestDeltas]:
        """All there is to tell, once."""
        deltas, self._deltas = self._deltas, {}
        return [RequestDeltas(request_id, items) for request_id, items in deltas.items()]
