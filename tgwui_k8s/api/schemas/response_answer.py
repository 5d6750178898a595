"""What `/v1/responses` answers: OpenAI's response object, and the events it is streamed in."""

from __future__ import annotations

from typing import Any, Literal

import msgspec

Status = Literal["in_progress", "completed", "incomplete"]


class OutputText(msgspec.Struct, frozen=True, tag_field="type", tag="output_text"):
    """Text of the answer."""

    text: str
    annotations: list[Any] = []
    logprobs: list[Any] = []


class ReasoningText(msgspec.Struct, frozen=True, tag_field="type", tag="reasoning_text"):
    """Text of the reasoning."""

    text: str


class MessageItem(msgspec.Struct, frozen=True, kw_only=True, tag_field="type", tag="message"):
    """What the assistant says."""

    id: str
    status: Status
    role: Literal["assistant"] = "assistant"
    content: list[OutputText]


class ReasoningItem(msgspec.Struct, frozen=True, kw_only=True, tag_field="type", tag="reasoning"):
    """What the model thought first."""

    id: str
    status: Status
    summary: list[Any] = []
    content: list[ReasoningText]
    encrypted_content: None = None


class CallItem(msgspec.Struct, frozen=True, kw_only=True, tag_field="type", tag="function_call"):
    """A call of a function."""

    id: str
    status: Status
    call_id: str
    name: str
    arguments: str


Item = MessageItem | ReasoningItem | CallItem
Part = OutputText | ReasoningText


class InputTokensDetails(msgspec.Struct, frozen=True):
    """What became of the prompt."""

    cached_tokens: int
    cache_write_tokens: int = 0


class OutputTokensDetails(msgspec.Struct, frozen=True):
    """Tokens of the reasoning."""

    reasoning_tokens: int


class ResponseUsage(msgspec.Struct, frozen=True):
    """Tokens of the whole response."""

    input_tokens: int
    input_tokens_details: InputTokensDetails
    output_tokens: int
    output_tokens_details: OutputTokensDetails
    total_tokens: int


class IncompleteDetails(msgspec.Struct, frozen=True):
    """Why a response is not complete."""

    reason: Literal["max_output_tokens"]


class ResponseObject(msgspec.Struct, frozen=True, kw_only=True):
    """The response, with what it was asked for."""

    id: str
    object: Literal["response"] = "response"
    created_at: int
    status: Status
    error: None = None
    incomplete_details: IncompleteDetails | None = None
    instructions: str | None
    max_output_tokens: int | None
    metadata: dict[str, str]
    model: str
    output: list[Item] = []
    parallel_tool_calls: bool
    previous_response_id: None = None
    reasoning: dict[str, Any]
    background: Literal[False] = False
    service_tier: Literal["default"] = "default"
    store: Literal[False] = False
    temperature: float
    text: dict[str, Any]
    tool_choice: Any
    tools: list[dict[str, Any]]
    top_logprobs: Literal[0] = 0
    top_p: float
    truncation: Literal["disabled"] = "disabled"
    usage: ResponseUsage | None = None


class Numbered(msgspec.Struct, kw_only=True, tag_field="type"):
    """An event; they are numbered as they are sent."""

    sequence_number: int = 0


class ResponseCreated(Numbered, kw_only=True, tag="response.created"):
    """The first event."""

    response: ResponseObject


class ResponseInProgress(Numbered, kw_only=True, tag="response.in_progress"):
    """The second."""

    response: ResponseObject


class ResponseCompleted(Numbered, kw_only=True, tag="response.completed"):
    """The last."""

    response: ResponseObject


class ResponseIncomplete(Numbered, kw_only=True, tag="response.incomplete"):
    """The last of a response that met its limit of tokens."""

    response: ResponseObject


class ItemAdded(Numbered, kw_only=True, tag="response.output_item.added"):
    """An item, without content yet."""

    output_index: int
    item: Item


class ItemDone(Numbered, kw_only=True, tag="response.output_item.done"):
    """The whole item."""

    output_index: int
    item: Item


class InItem(Numbered, kw_only=True):
    """Something inside an item."""

    item_id: str
    output_index: int


class PartAdded(InItem, kw_only=True, tag="response.content_part.added"):
    """A part, without text yet."""

    content_index: int = 0
    part: Part


class PartDone(InItem, kw_only=True, tag="response.content_part.done"):
    """The whole part."""

    content_index: int = 0
    part: Part


class TextDelta(InItem, kw_only=True, tag="response.output_text.delta"):
    """More text."""

    content_index: int = 0
    delta: str
    logprobs: list[Any] = []


class TextDone(InItem, kw_only=True, tag="response.output_text.done"):
    """The whole text."""

    content_index: int = 0
    text: str
    logprobs: list[Any] = []


class ReasoningDelta(InItem, kw_only=True, tag="response.reasoning_text.delta"):
    """More reasoning."""

    content_index: int = 0
    delta: str


class ReasoningDone(InItem, kw_only=True, tag="response.reasoning_text.done"):
    """The whole reasoning."""

    content_index: int = 0
    text: str


class ArgumentsDelta(InItem, kw_only=True, tag="response.function_call_arguments.delta"):
    """More of a call's arguments."""

    delta: str


class ArgumentsDone(InItem, kw_only=True, tag="response.function_call_arguments.done"):
    """The whole arguments."""

    name: str
    arguments: str


class Failure(Numbered, kw_only=True, tag="error"):
    """An error that ends the stream."""

    code: str | None
    message: str
    param: str | None


OutputEvent = (
    ItemAdded
    | ItemDone
    | PartAdded
    | PartDone
    | TextDelta
    | TextDone
    | ReasoningDelta
    | ReasoningDone
    | ArgumentsDelta
    | ArgumentsDone
)
ResponseEvent = (
    ResponseCreated
    | ResponseInProgress
    | ResponseCompleted
    | ResponseIncomplete
    | OutputEvent
    | Failure
)
