"""Chunks as OpenAI's response: its items, whole or streamed one after the other."""

from __future__ import annotations

import time
from typing import Any

import msgspec

from tgwui_k8s.api.choice import ChoiceChunk
from tgwui_k8s.api.errors import error_body
from tgwui_k8s.api.generation import Generation
from tgwui_k8s.api.plan import Plan
from tgwui_k8s.api.response_output import Output
from tgwui_k8s.api.schemas.response_answer import (
    Failure,
    IncompleteDetails,
    InputTokensDetails,
    OutputEvent,
    OutputTokensDetails,
    ReasoningItem,
    ResponseCompleted,
    ResponseCreated,
    ResponseEvent,
    ResponseIncomplete,
    ResponseInProgress,
    ResponseObject,
    ResponseUsage,
    Status,
)
from tgwui_k8s.api.schemas.response_request import ResponseRequest
from tgwui_k8s.api.sse import named_frame


class ResponseWriter:
    """One response's writer; it numbers the events of a stream."""

    def __init__(self, request: ResponseRequest, plan: Plan) -> None:
        self._output = Output()
        self._response = _response(request, plan)
        self._tokenizer = plan.model.tokenizer
        self._num_events = 0
        self._status: Status = "completed"

    def events(self, generation: Generation, chunks: list[ChoiceChunk]) -> bytes:
        """The events of what has come."""
        events: list[ResponseEvent] = []
        if not self._num_events:
            events.append(ResponseCreated(response=self._response))
            events.append(ResponseInProgress(response=self._response))
        for chunk in chunks:
            events += self._take(chunk)
        return b"".join(map(self._frame, events))

    def last_events(self, generation: Generation) -> bytes:
        """The end of the last item and the whole response."""
        events: list[ResponseEvent] = [*self._output.close(self._status)]
        response = self._whole(generation)
        if self._status == "completed":
            events.append(ResponseCompleted(response=response))
        else:
            events.append(ResponseIncomplete(response=response))
        return b"".join(map(self._frame, events))

    def done(self) -> bytes:
        """The last event has said so."""
        return b""

    def failed(self, error: BaseException) -> bytes:
        """An `error` event."""
        told: Any = error_body(error)["error"]
        return self._frame(Failure(code=told["code"], message=told["message"], param=told["param"]))

    def whole(self, generation: Generation, choices: list[ChoiceChunk]) -> bytes:
        """The response."""
        for chunk in choices:
            self._take(chunk)
        self._output.close(self._status)
        return msgspec.json.encode(self._whole(generation))

    def _take(self, chunk: ChoiceChunk) -> list[OutputEvent]:
        if chunk.finish_reason == "length":
            self._status = "incomplete"
        return self._output.take(chunk.events)

    def _whole(self, generation: Generation) -> ResponseObject:
        is_cut = self._status == "incomplete"
        return msgspec.structs.replace(
            self._response,
            status=self._status,
            incomplete_details=IncompleteDetails("max_output_tokens") if is_cut else None,
            output=self._output.items,
            usage=self._usage(generation),
        )

    def _usage(self, generation: Generation) -> ResponseUsage:
        usage = generation.usage
        return ResponseUsage(
            input_tokens=usage.prompt_tokens,
            input_tokens_details=InputTokensDetails(usage.prompt_tokens_details.cached_tokens),
            output_tokens=usage.completion_tokens,
            output_tokens_details=OutputTokensDetails(
                min(self._count_reasoning(), usage.completion_tokens)
            ),
            total_tokens=usage.total_tokens,
        )

    def _count_reasoning(self) -> int:
        """Tokens of the reasoning's text, without the tags around it."""
        texts = [
            part.text
            for item in self._output.items
            if isinstance(item, ReasoningItem)
            for part in item.content
        ]
        return sum(len(self._tokenizer.encode(text, add_special_tokens=False)) for text in texts)

    def _frame(self, event: ResponseEvent) -> bytes:
        event.sequence_number = self._num_events
        self._num_events += 1
        return named_frame(str(event.__struct_config__.tag), event)


def _response(request: ResponseRequest, plan: Plan) -> ResponseObject:
    """The response before anything has been generated: what was asked for."""
    asked = request.model_dump(exclude_none=True, by_alias=True)
    return ResponseObject(
        id=plan.response_id,
        created_at=int(time.time()),
        status="in_progress",
        instructions=request.instructions,
        max_output_tokens=request.max_output_tokens,
        metadata=request.metadata or {},
        model=plan.model.names[0],
        parallel_tool_calls=request.parallel_tool_calls is not False,
        reasoning={"effort": None, "summary": None, **asked.get("reasoning", {})},
        temperature=1.0 if request.temperature is None else request.temperature,
        text={"format": {"type": "text"}, **asked.get("text", {})},
        tool_choice=asked.get("tool_choice", "auto"),
        tools=asked.get("tools", []),
        top_p=1.0 if request.top_p is None else request.top_p,
    )
