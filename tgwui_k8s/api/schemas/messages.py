"""The bodies of `POST /v1/messages` and `/v1/messages/count_tokens`: Anthropic's fields."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field

from tgwui_k8s.api.schemas.fields import (
    INT32_MAX,
    TextOr,
    WireModel,
    accepted,
    honoured,
    refused,
)
from tgwui_k8s.api.schemas.generation import MAX_STOP_STRINGS, StopString

_NO_CONTAINERS = "The server runs no code."
_CACHE = "A hint: equal prefixes are found without it."


class TextBlock(WireModel):
    """A text."""

    type: Literal["text"] = honoured("Always `text`.", default=...)
    text: str = honoured("The text.", default=...)
    cache_control: Any = accepted(_CACHE)
    citations: Any = refused("Answers have no citations.", neutral=([],))


class ThinkingBlock(WireModel):
    """What the assistant thought before an earlier answer; the chat template sees it."""

    type: Literal["thinking"] = honoured("Always `thinking`.", default=...)
    thinking: str = honoured("The reasoning.", default=...)
    signature: str | None = accepted("Reasoning is not signed.")


class ToolUseBlock(WireModel):
    """A tool call of the assistant's."""

    type: Literal["tool_use"] = honoured("Always `tool_use`.", default=...)
    id: str = honoured("What the result refers to.", default=...)
    name: str = honoured("The tool's name.", default=...)
    input: dict[str, Any] = honoured("Its arguments.", default=...)
    cache_control: Any = accepted(_CACHE)
    caller: Any = refused(_NO_CONTAINERS, neutral=({"type": "direct"},))
    toolset_name: Any = refused("There are no toolsets.")


Texts = TextOr[TextBlock]


class ToolResultBlock(WireModel):
    """What a tool answered."""

    type: Literal["tool_result"] = honoured("Always `tool_result`.", default=...)
    tool_use_id: str = honoured("The call it answers.", default=...)
    content: Texts | None = honoured("The answer: text, or text blocks.")
    is_error: bool | None = accepted("The content says what went wrong.")
    cache_control: Any = accepted(_CACHE)
    toolset_name: Any = refused("There are no toolsets.")


Block = Annotated[
    TextBlock | ThinkingBlock | ToolUseBlock | ToolResultBlock, Field(discriminator="type")
]


class InputMessage(WireModel):
    """One turn of the conversation."""

    role: Literal["user", "assistant", "system"] = honoured("Who speaks.", default=...)
    content: TextOr[Block] = honoured("Text, or blocks.", default=...)


class Tool(WireModel):
    """A tool the model may call."""

    type: Literal["custom"] | None = honoured("`custom` or absent; the server has no own tools.")
    name: str = honoured("What the model calls it.", default=..., min_length=1, max_length=128)
    description: str | None = honoured("What it does, for the model.")
    input_schema: dict[str, Any] = honoured("JSON Schema of its arguments.", default=...)
    strict: bool | None = honoured("The arguments always follow the schema.")
    cache_control: Any = accepted(_CACHE)
    eager_input_streaming: bool | None = accepted("Arguments are streamed as they come.")
    allowed_callers: Any = refused(_NO_CONTAINERS, neutral=(["direct"],))
    defer_loading: Any = refused("All tools are told to the model.", neutral=(False,))
    input_examples: Any = refused("Put them into the description.", neutral=([],))


class ToolChoice(WireModel):
    """Whether the model must call a tool."""

    type: Literal["auto", "any", "tool", "none"] = honoured(
        "Its choice; one of them; the one named; none.", default=...
    )
    name: str | None = honoured("With `tool`: which.")
    disable_parallel_tool_use: bool | None = honoured("At most one call.")


class Thinking(WireModel):
    """Whether the model thinks before it answers."""

    type: Literal["enabled", "disabled", "adaptive"] = honoured(
        "On, off, or as the chat template does by itself.", default=...
    )
    budget_tokens: int | None = honoured(
        "With `enabled`: most tokens of reasoning.", ge=1, le=INT32_MAX
    )
    display: Any = refused("Reasoning is given as it is.", neutral=("summarized",))


class OutputFormat(WireModel):
    """What the answer's text shall be."""

    type: Literal["json_schema"] = honoured("Always `json_schema`.", default=...)
    schema_: dict[str, Any] = honoured(
        "The JSON Schema the text follows.", default=..., alias="schema"
    )


class OutputConfig(WireModel):
    """What shape the answer has."""

    format: OutputFormat | None = honoured("The text is JSON of this schema.")
    effort: Any = refused("Use `thinking`.", neutral=("medium",))


class PromptFields(WireModel):
    """What becomes the prompt."""

    model: str = honoured("A served model's name. Others are a 404.", default=..., max_length=1000)
    messages: list[InputMessage] = honoured(
        "The conversation so far; a last message of the assistant's is gone on with.",
        default=...,
        min_length=1,
    )
    system: Texts | None = honoured("The system prompt.")
    tools: list[Tool] | None = honoured("Tools the model may call.")
    tool_choice: ToolChoice | None = honoured("Whether it must. Default `auto`.")
    thinking: Thinking | None = honoured("Whether it thinks before it answers.")
    output_config: OutputConfig | None = honoured("What shape the answer has.")
    cache_control: Any = accepted(_CACHE)
    context_management: Any = refused("The conversation is taken as it is.")
    mcp_servers: Any = refused("The server calls no tools itself.", neutral=([],))
    speed: Any = refused("There is one speed.", neutral=("standard",))
    user_profile_id: Any = refused("There are no profiles.")
    workspace_id: Any = refused("There are no workspaces.")


class CountTokensRequest(PromptFields):
    """How long would the prompt be?"""


class MessagesRequest(PromptFields):
    """Anthropic's fields."""

    max_tokens: int = honoured("Most tokens of the answer.", default=..., ge=1, le=INT32_MAX)
    stop_sequences: list[StopString] | None = honoured(
        "Strings that end the text; they are not part of it.", max_length=MAX_STOP_STRINGS
    )
    stream: bool | None = honoured("Server-sent events instead of one answer.")
    temperature: float | None = honoured(
        "Divides the logits; 0 takes the most likely token. Default 1.", ge=0, le=1
    )
    top_k: int | None = honoured("Keeps the k most likely tokens; 0 is off.", ge=0, le=INT32_MAX)
    top_p: float | None = honoured(
        "Keeps the most likely tokens that together have this probability. Default 1.", ge=0, le=1
    )
    metadata: Any = accepted("Nothing is stored.")
    service_tier: Literal["auto", "standard_only"] | None = accepted("There is one tier.")
    container: Any = refused(_NO_CONTAINERS)
    diagnostics: Any = refused("The metrics tell what the prefix cache finds.")
    inference_geo: Any = refused("The server is where it is.")
