"""The body of `POST /v1/responses`: OpenAI's fields, as far as nothing has to be stored."""

from __future__ import annotations

from typing import Annotated, Any, Literal, get_args

from pydantic import Field

from tgwui_k8s.api.schemas.fields import (
    AN_ARRAY,
    EITHER_SHAPE,
    INT32_MAX,
    Text,
    TextOr,
    WireModel,
    accepted,
    honoured,
    refused,
)

_NO_PICTURES = "Only text parts are supported by the loaded model."
_STATELESS = "Nothing is stored: send the whole conversation as `input`."
_NO_SERVER_TOOLS = "The server runs no tools itself; only functions are supported."

ItemType = Literal[
    "message",
    "function_call",
    "function_call_output",
    "reasoning",
    "item_reference",
    "file_search_call",
    "computer_call",
    "computer_call_output",
    "web_search_call",
    "tool_search_call",
    "tool_search_output",
    "additional_tools",
    "compaction",
    "image_generation_call",
    "code_interpreter_call",
    "local_shell_call",
    "local_shell_call_output",
    "shell_call",
    "shell_call_output",
    "apply_patch_call",
    "apply_patch_call_output",
    "mcp_list_tools",
    "mcp_approval_request",
    "mcp_approval_response",
    "mcp_call",
    "custom_tool_call",
    "custom_tool_call_output",
]
_ITEMS = ("message", "function_call", "function_call_output", "reasoning")
_UNSUPPORTED_ITEMS = tuple(kind for kind in get_args(ItemType) if kind not in _ITEMS)


class InputPart(WireModel):
    """One part of an item's content."""

    type: Literal[
        "input_text",
        "output_text",
        "reasoning_text",
        "input_image",
        "input_file",
        "input_audio",
        "refusal",
    ] = honoured(
        "What the part holds.",
        default=...,
        unsupported={
            **dict.fromkeys(("input_image", "input_file", "input_audio"), _NO_PICTURES),
            "refusal": "Say it in a text.",
        },
    )
    text: str | None = honoured("The text of a text part.")
    annotations: Any = accepted("A text of ours comes back as it was.")
    logprobs: Any = accepted("A text of ours comes back as it was.")


Content = TextOr[InputPart]


class InputItem(WireModel):
    """One item of the conversation: what was said, thought, called, or answered by a tool."""

    type: ItemType = honoured(
        "What the item is. Default `message`.",
        default="message",
        unsupported={
            **dict.fromkeys(_UNSUPPORTED_ITEMS, _NO_SERVER_TOOLS),
            "item_reference": _STATELESS,
            "compaction": _STATELESS,
        },
    )
    role: Literal["user", "assistant", "system", "developer"] | None = honoured(
        "Of a message: who speaks."
    )
    content: Content | None = honoured("Of a message or reasoning: text, or text parts.")
    call_id: str | None = honoured("Of a call and its output: what joins them.")
    name: str | None = honoured("Of a call: the function.")
    arguments: str | None = honoured("Of a call: its arguments, as JSON.")
    output: Content | None = honoured("Of a call's output: text, or text parts.")
    id: str | None = accepted("Nothing is stored under it.")
    status: str | None = accepted("Items are taken as they are.")
    phase: str | None = accepted("Items are taken as they are.")
    summary: Any = accepted("The content says more.")
    encrypted_content: Any = refused("Reasoning comes unencrypted, in `content`.")


Input = Annotated[Text | Annotated[list[InputItem], AN_ARRAY, Field(min_length=1)], EITHER_SHAPE]


class FunctionTool(WireModel):
    """A function the model may call."""

    type: Literal["function"] = honoured(f"Always `function`. {_NO_SERVER_TOOLS}", default=...)
    name: str = honoured("What the model calls it.", default=..., min_length=1, max_length=128)
    description: str | None = honoured("What it does, for the model.")
    parameters: dict[str, Any] | None = honoured("JSON Schema of its arguments.")
    strict: bool | None = honoured("The arguments always follow the schema.")
    defer_loading: Any = refused("All tools are told to the model.", neutral=(False,))
    allowed_callers: Any = refused(_NO_SERVER_TOOLS, neutral=(["direct"],))
    output_schema: Any = refused("What a function returns is not checked.")


class NamedTool(WireModel):
    """The function the model must call."""

    type: Literal["function"] = honoured("Always `function`.", default=...)
    name: str = honoured("Which.", default=...)


class TextFormat(WireModel):
    """What the text shall be."""

    type: Literal["text", "json_object", "json_schema"] = honoured(
        "Anything, JSON, or JSON of a schema.", default=...
    )
    name: str | None = honoured("With `json_schema`: what the schema is called.")
    description: str | None = honoured("With `json_schema`: what it is for.")
    schema_: dict[str, Any] | None = honoured("With `json_schema`: the schema.", alias="schema")
    strict: bool | None = honoured("With `json_schema`: the text always follows it.")


class TextConfig(WireModel):
    """What the answer's text is like."""

    format: TextFormat | None = honoured("What the text shall be. Default anything.")
    verbosity: Any = refused("Say it in a message.", neutral=("medium",))


Effort = Literal["none", "minimal", "low", "medium", "high", "xhigh", "max"]


class Reasoning(WireModel):
    """How the model reasons."""

    effort: Effort | None = honoured(
        "`none` switches it off through the chat template; `medium` is as the model does.",
        unsupported=dict.fromkeys(
            ("minimal", "low", "high", "xhigh", "max"), "The model knows no degrees of reasoning."
        ),
    )
    summary: Any = refused("Reasoning is given as it is.", neutral=("auto",))
    generate_summary: Any = refused("Reasoning is given as it is.", neutral=("auto",))
    context: Any = refused("Items are taken as they are.", neutral=("auto",))
    mode: Any = refused("There is one mode.", neutral=("standard",))


class ResponseRequest(WireModel):
    """OpenAI's fields."""

    input: Input = honoured("The conversation so far: a text, or items.", default=...)
    instructions: str | None = honoured("A system message before the input.")
    model: str | None = honoured(
        "A served model's name; absent: the loaded model. Others are a 404.", max_length=1000
    )
    max_output_tokens: int | None = honoured(
        "Most tokens of the answer, reasoning included. Default: the rest of the context.",
        ge=1,
        le=INT32_MAX,
    )
    temperature: float | None = honoured(
        "Divides the logits; 0 takes the most likely token. Default 1.", ge=0, le=2
    )
    top_p: float | None = honoured(
        "Keeps the most likely tokens that together have this probability. Default 1.", ge=0, le=1
    )
    tools: list[FunctionTool] | None = honoured("Functions the model may call.")
    tool_choice: Literal["none", "auto", "required"] | NamedTool | None = honoured(
        "Whether it must call one. Default `auto`."
    )
    parallel_tool_calls: bool | None = honoured("False: at most one call. Default true.")
    text: TextConfig | None = honoured("What the answer's text is like.")
    reasoning: Reasoning | None = honoured("How the model reasons.")
    stream: bool | None = honoured("Server-sent events instead of one answer.")
    stream_options: Any = refused(
        "Events are not padded.", neutral=({"include_obfuscation": False},)
    )
    metadata: dict[str, str] | None = honoured("Comes back with the response.")

    # Hints
    user: str | None = accepted("A hint for abuse detection, which there is none of.")
    safety_identifier: str | None = accepted("A hint for abuse detection, which there is none of.")
    prompt_cache_key: str | None = accepted("A hint: equal prefixes are found without it.")
    service_tier: Literal["auto", "default", "flex", "scale", "priority", "fast"] | None = accepted(
        "There is one tier."
    )
    include: list[Literal["reasoning.encrypted_content"]] | None = accepted(
        "Reasoning comes unencrypted, in `content`."
    )

    # Not there
    store: Any = refused("Nothing is stored.", neutral=(False,))
    previous_response_id: Any = refused(_STATELESS)
    conversation: Any = refused(_STATELESS)
    background: Any = refused(_STATELESS, neutral=(False,))
    prompt: Any = refused("There are no stored prompts.")
    truncation: Any = refused("The input is taken whole.", neutral=("disabled",))
    top_logprobs: Any = refused("Use /v1/chat/completions.", neutral=(0,))
    max_tool_calls: Any = refused(_NO_SERVER_TOOLS)
    context_management: Any = refused(_STATELESS, neutral=([],))
    prompt_cache_options: Any = refused("The prefix cache needs no options.")
    prompt_cache_retention: Any = refused(
        "The prefix cache evicts what is used least.", neutral=("in_memory",)
    )
    moderation: Any = refused("There is no moderation.")
    image: Any = refused(_NO_PICTURES)
    access_programs: Any = refused("There are no programs.")
