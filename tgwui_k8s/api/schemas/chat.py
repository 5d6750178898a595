"""The body of `POST /v1/chat/completions`."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Discriminator, Tag

from tgwui_k8s.api.schemas.fields import (
    INT32_MAX,
    TextOr,
    WireModel,
    accepted,
    honoured,
    refused,
)
from tgwui_k8s.api.schemas.generation import GenerationFields
from tgwui_k8s.sampling import MAX_TOP_LOGPROBS

MAX_TOOLS = 128

_NO_PICTURES = "Only text parts are supported by the loaded model."
_OLD_TOOLS = "Use tools and tool_choice."
_NO_CHARACTERS = "Characters and their templates belong to the web page; send messages instead."


class ContentPart(WireModel):
    """One part of a message's content."""

    type: Literal["text", "image_url", "video_url", "input_audio", "audio_url", "file"] = honoured(
        "What the part holds.",
        default=...,
        unsupported=dict.fromkeys(
            ("image_url", "video_url", "input_audio", "audio_url", "file"), _NO_PICTURES
        ),
    )
    text: str | None = honoured("The text of a text part.")
    image_url: Any = refused(_NO_PICTURES)
    video_url: Any = refused(_NO_PICTURES)
    input_audio: Any = refused(_NO_PICTURES)
    audio_url: Any = refused(_NO_PICTURES)
    file: Any = refused(_NO_PICTURES)


class FunctionCall(WireModel):
    """What an assistant called earlier in the conversation."""

    name: str = honoured("The function's name.", default=...)
    arguments: str = honoured("Its arguments, as JSON.", default=...)


class ToolCall(WireModel):
    """A tool call earlier in the conversation; the chat template sees it."""

    id: str = honoured("What the tool's answer refers to.", default=...)
    type: Literal["function"] = honoured("Always `function`.", default=...)
    function: FunctionCall = honoured("The call.", default=...)
    index: int | None = accepted("The place in the array says the same.")


class Message(WireModel):
    """One message of the conversation."""

    role: Literal["system", "developer", "user", "assistant", "tool"] = honoured(
        "Who speaks.", default=...
    )
    content: TextOr[ContentPart] | None = honoured(
        "Text, or text parts; null only beside `tool_calls`."
    )
    name: str | None = honoured("Handed to the chat template.")
    tool_calls: list[ToolCall] | None = honoured("Earlier tool calls, for the chat template.")
    tool_call_id: str | None = honoured("The call a tool message answers.")
    reasoning_content: str | None = honoured("Earlier reasoning, for the chat template.")
    refusal: Any = refused("Say it in the content.")
    annotations: Any = refused(_NO_PICTURES, neutral=([],))
    audio: Any = refused(_NO_PICTURES)
    function_call: Any = refused("Use tool_calls.")


class FunctionTool(WireModel):
    """A function the model may call."""

    name: str = honoured(
        "Letters, digits, `_`, `-` and `.`.", default=..., pattern=r"^[a-zA-Z0-9_.-]{1,128}$"
    )
    description: str | None = honoured("What it does, for the model.")
    parameters: dict[str, Any] | None = honoured("JSON schema of its arguments, an object's.")
    strict: bool | None = honoured(
        "Hold calls to the schema; a schema that cannot be enforced is a 400 then."
    )


class Tool(WireModel):
    """Something the model may use."""

    type: Literal["function", "custom"] = honoured(
        "What it is.",
        default=...,
        unsupported={"custom": "Only functions can be called."},
    )
    function: FunctionTool = honoured("The function.", default=...)


class ToolName(WireModel):
    """Which function."""

    name: str = honoured("Its name.", default=...)


class NamedToolChoice(WireModel):
    """The one tool that must be called."""

    type: Literal["function"] = honoured("Always `function`.", default=...)
    function: ToolName = honoured("The function.", default=...)


_WORD = "a word"
_OBJECT = "an object"


def _choice_shape(value: Any) -> str:
    return _OBJECT if isinstance(value, (dict, NamedToolChoice)) else _WORD


ToolChoice = Annotated[
    Annotated[Literal["none", "auto", "required"], Tag(_WORD)]
    | Annotated[NamedToolChoice, Tag(_OBJECT)],
    Discriminator(_choice_shape),
]


class ResponseFormat(WireModel):
    """What the answer's text must be."""

    type: Literal["text", "json_object", "json_schema"] = honoured(
        "Any text, any JSON object, or JSON that matches `json_schema`.", default=...
    )
    json_schema: dict[str, Any] | None = honoured(
        "`name`, `description`, `schema` and `strict`. The schema is enforced, strict or not; "
        "keywords that cannot be enforced are a 400."
    )


class ChatRequest(GenerationFields):
    """OpenAI's fields, text-generation-webui's, and our extensions."""

    messages: list[Message] = honoured("The conversation so far.", default=..., min_length=1)
    max_completion_tokens: int | None = honoured(
        "Most tokens per choice. Default: the rest of the context.", ge=1, le=INT32_MAX
    )
    max_tokens: int | None = honoured(
        "The older name of `max_completion_tokens`.", ge=1, le=INT32_MAX
    )
    logprobs: bool | None = honoured("Log probabilities of the tokens.")
    top_logprobs: int | None = honoured(
        "Most likely tokens per place; needs `logprobs`.", ge=0, le=MAX_TOP_LOGPROBS
    )

    # How the messages become a prompt
    add_generation_prompt: bool | None = honoured(
        "End the prompt where the assistant's answer starts. Default true."
    )
    continue_final_message: bool | None = honoured(
        "Go on with the last message, the assistant's, instead of answering it."
    )
    continue_: bool | None = honoured("text-generation-webui's `continue_final_message`.")
    instruction_template: str | None = honoured(
        "Alpaca, ChatML, Gemma, Llama-v2, Llama-v3, Mistral or Vicuna-v1.1: a template by "
        "text-generation-webui's name, in place of the model's."
    )
    chat_template_kwargs: dict[str, Any] | None = honoured("Variables for the chat template.")
    enable_thinking: bool | None = honoured("The template's variable of this name.")
    thinking_token_budget: int | None = honoured(
        "Most tokens of reasoning; then it is ended and the answer begins.", ge=0, le=INT32_MAX
    )

    # Tools and structure
    tools: list[Tool] | None = honoured(
        "Functions the model may call, if its chat template knows tools.", max_length=MAX_TOOLS
    )
    tool_choice: ToolChoice | None = honoured(
        "`auto`, `none`, `required`, or the one function to call. A choice that forces a call is "
        "enforced. Default: `auto`."
    )
    parallel_tool_calls: bool | None = honoured("False: at most one call. Default true.")
    response_format: ResponseFormat | None = honoured("What the answer must be. Default: text.")

    # Hints
    metadata: dict[str, str] | None = accepted("Nothing is stored.")
    service_tier: Literal["auto", "default", "flex", "scale", "priority", "fast"] | None = accepted(
        "There is one tier; see `priority`."
    )
    safety_identifier: str | None = accepted("A hint for abuse detection, which there is none of.")
    prompt_cache_key: str | None = accepted("A hint: equal prefixes are found without it.")

    # Not there, or not yet
    store: Any = refused("Nothing is stored.", neutral=(False,))
    functions: Any = refused(_OLD_TOOLS, neutral=([],))
    function_call: Any = refused(_OLD_TOOLS, neutral=("none", "auto"))
    reasoning_budget: Any = refused("Use thinking_token_budget.", neutral=(-1,))
    modalities: Any = refused("Answers are text.", neutral=(["text"],))
    audio: Any = refused("Answers are text.")
    prediction: Any = refused("Predicted outputs are not supported.")
    web_search_options: Any = refused("The server does not search the web.")
    reasoning_effort: Any = refused("Use chat_template_kwargs.", neutral=("medium",))
    preserve_thinking: Any = refused("Use chat_template_kwargs.", neutral=(False,))
    verbosity: Any = refused("Say it in a message.", neutral=("medium",))
    moderation: Any = refused("There is no moderation.")
    prompt_cache_options: Any = refused("The prefix cache needs no options.")
    prompt_cache_retention: Any = refused(
        "The prefix cache evicts what is used least.", neutral=("in_memory",)
    )
    mode: Any = refused(_NO_CHARACTERS, neutral=("instruct",))
    character: Any = refused(_NO_CHARACTERS)
    instruction_template_str: Any = refused(
        "A template from a client could use up the server's memory: name an "
        "instruction_template, or start the server with --chat-template."
    )
    chat_template_str: Any = refused(_NO_CHARACTERS)
    chat_instruct_command: Any = refused(_NO_CHARACTERS)
    name1: Any = refused(_NO_CHARACTERS)
    name2: Any = refused(_NO_CHARACTERS)
    context: Any = refused(_NO_CHARACTERS)
    greeting: Any = refused(_NO_CHARACTERS)
    user_bio: Any = refused(_NO_CHARACTERS)
    impersonate: Any = refused(_NO_CHARACTERS, neutral=(False,))
