"""What the generation routes answer: OpenAI's shapes, and our extensions where they were asked for.

msgspec structs, not pydantic models: a stream encodes one of these per chunk.
A field that is `UNSET` does not appear.
"""

from __future__ import annotations

from typing import Literal

import msgspec
from msgspec import UNSET, UnsetType

FinishReason = Literal["stop", "length", "tool_calls"]


class PromptTokensDetails(msgspec.Struct, frozen=True):
    """What became of the prompt."""

    cached_tokens: int


class Usage(msgspec.Struct, frozen=True):
    """Tokens of the whole request, resumed ones included."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    prompt_tokens_details: PromptTokensDetails


class Extensions(msgspec.Struct, frozen=True, kw_only=True):
    """With `return_token_ids`: what a client needs to have the request resumed elsewhere."""

    token_ids: list[int] | UnsetType = UNSET
    """Ids whose text this chunk completes."""
    text_offset: int | UnsetType = UNSET
    """Code points of raw generated text before this chunk."""
    text_length: int | UnsetType = UNSET
    """Code points of raw generated text in this chunk: tags of a chat answer included, echo not."""
    prompt_token_ids: list[int] | UnsetType = UNSET
    """In the first chunk of each prompt's first choice."""


# ---------------------------------------------------------------------------------- completions


class CompletionLogprobs(msgspec.Struct, frozen=True):
    """One entry per token in each of the lists."""

    tokens: list[str]
    token_logprobs: list[float | None]
    """Natural logarithms; null for the first token of a prompt."""
    top_logprobs: list[dict[str, float] | None]
    text_offset: list[int]
    """Where each token begins in the choice's text."""


class CompletionChoice(Extensions, frozen=True, kw_only=True):
    """A choice, or what a chunk adds to it."""

    index: int
    text: str
    logprobs: CompletionLogprobs | None
    finish_reason: FinishReason | None


class Completion(msgspec.Struct, frozen=True, kw_only=True):
    """The answer, and a stream's chunk."""

    id: str
    object: Literal["text_completion"] = "text_completion"
    created: int
    model: str
    system_fingerprint: str
    choices: list[CompletionChoice]
    usage: Usage | UnsetType | None = UNSET


# ----------------------------------------------------------------------------------------- chat


class TopLogprob(msgspec.Struct, frozen=True):
    """A token that could have been."""

    token: str
    logprob: float
    bytes: list[int]


class TokenLogprob(msgspec.Struct, frozen=True):
    """A token that was."""

    token: str
    logprob: float
    bytes: list[int]
    top_logprobs: list[TopLogprob]


class ChatLogprobs(msgspec.Struct, frozen=True):
    """One entry per token."""

    content: list[TokenLogprob]
    refusal: None = None


class FunctionCall(msgspec.Struct, frozen=True):
    """Which function, with what."""

    name: str
    arguments: str
    """JSON."""


class MessageToolCall(msgspec.Struct, frozen=True, kw_only=True):
    """A call of the assistant's message."""

    id: str
    type: Literal["function"] = "function"
    function: FunctionCall


class ChatMessage(msgspec.Struct, frozen=True, kw_only=True):
    """The assistant's message."""

    role: Literal["assistant"] = "assistant"
    content: str | None
    """null where there are only tool calls."""
    refusal: None = None
    reasoning_content: str | UnsetType = UNSET
    tool_calls: list[MessageToolCall] | UnsetType = UNSET


class ChatChoice(Extensions, frozen=True, kw_only=True):
    """A choice."""

    index: int
    message: ChatMessage
    logprobs: ChatLogprobs | None
    finish_reason: FinishReason | None


class ChatCompletion(msgspec.Struct, frozen=True, kw_only=True):
    """The answer."""

    id: str
    object: Literal["chat.completion"] = "chat.completion"
    created: int
    model: str
    system_fingerprint: str
    choices: list[ChatChoice]
    usage: Usage


class FunctionDelta(msgspec.Struct, frozen=True):
    """What a chunk adds to a call: the name at once, the arguments bit by bit."""

    name: str | UnsetType = UNSET
    arguments: str | UnsetType = UNSET


class ToolCallDelta(msgspec.Struct, frozen=True, kw_only=True):
    """What a chunk adds to the calls; `id` and `type` come once per call."""

    index: int
    id: str | UnsetType = UNSET
    type: Literal["function"] | UnsetType = UNSET
    function: FunctionDelta


class ChatDelta(msgspec.Struct, frozen=True, kw_only=True):
    """What a chunk adds to the message."""

    role: Literal["assistant"] | UnsetType = UNSET
    content: str | UnsetType = UNSET
    reasoning_content: str | UnsetType = UNSET
    tool_calls: list[ToolCallDelta] | UnsetType = UNSET


class ChatChunkChoice(Extensions, frozen=True, kw_only=True):
    """What a chunk adds to a choice."""

    index: int
    delta: ChatDelta
    logprobs: ChatLogprobs | None
    finish_reason: FinishReason | None


class ChatCompletionChunk(msgspec.Struct, frozen=True, kw_only=True):
    """A stream's chunk."""

    id: str
    object: Literal["chat.completion.chunk"] = "chat.completion.chunk"
    created: int
    model: str
    system_fingerprint: str
    choices: list[ChatChunkChoice]
    usage: Usage | UnsetType | None = UNSET
