"""Messages to prompt text: parts, roles and earlier tool calls as chat templates want them."""

from __future__ import annotations

from typing import Any

import msgspec

from tgwui_k8s.api.answer_format import offered_tools
from tgwui_k8s.api.chat_template import ChatTemplate
from tgwui_k8s.api.instruction_templates import instruction_template
from tgwui_k8s.api.schemas.chat import ChatRequest, Message, ToolCall
from tgwui_k8s.api.state import ServedModel
from tgwui_k8s.errors import InvalidRequestError, UnsupportedParameterError


def chat_prompt(request: ChatRequest, template: ChatTemplate) -> str:
    """The prompt for the conversation; CPU work. `template` is `template_of` the request.

    System messages where the template refuses them become part of the user's message that follows.
    Raises `InvalidRequestError` for messages that are incomplete or that the template refuses, and
    for tools that it would leave out.
    """
    messages = template_messages(request.messages, template)
    try:
        return _rendered(request, template, messages)
    except InvalidRequestError as error:
        folded = _folded(messages)
        if error.param != "messages" or folded == messages:
            raise
        try:
            return _rendered(request, template, folded)
        except InvalidRequestError:
            raise error from None


def template_of(request: ChatRequest, model: ServedModel) -> ChatTemplate:
    """The template that the request names, or the model's."""
    if request.instruction_template is not None:
        return instruction_template(request.instruction_template, model.tokenizer.special_tokens)
    if model.chat_template is None:
        raise UnsupportedParameterError(
            "The loaded model has no chat template: use /v1/completions, name an "
            "'instruction_template', or start the server with --chat-template.",
            param="messages",
        )
    return model.chat_template


def _rendered(request: ChatRequest, template: ChatTemplate, messages: list[dict[str, Any]]) -> str:
    continues = _continues(request)
    template_kwargs = dict(request.chat_template_kwargs or {})
    if request.enable_thinking is not None:
        template_kwargs["enable_thinking"] = request.enable_thinking
    return template.render(
        messages,
        tools=_tools(request, template),
        add_generation_prompt=not continues and request.add_generation_prompt is not False,
        continue_final_message=continues,
        template_kwargs=template_kwargs,
    )


def _tools(request: ChatRequest, template: ChatTemplate) -> list[dict[str, Any]] | None:
    tools = [tool.model_dump(exclude_none=True) for tool in offered_tools(request)]
    if tools and "tools" not in template.text:
        raise UnsupportedParameterError(
            "Unsupported parameter: 'tools'. The loaded model's chat template knows no tools.",
            param="tools",
        )
    return tools or None


def template_messages(messages: list[Message], template: ChatTemplate) -> list[dict[str, Any]]:
    """The messages as dictionaries of text.

    A `developer` is a `system` to templates that have never heard of one.
    """
    knows_developer = "developer" in template.source
    prepared = []
    for index, message in enumerate(messages):
        is_system = message.role == "developer" and not knows_developer
        prepared.append(
            {
                "role": "system" if is_system else message.role,
                "content": _text(message, index),
                **_rest(message, index),
            }
        )
    return prepared


def _folded(messages: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """System messages as the beginning of the user's next message; those that have none stay."""
    folded: list[dict[str, Any]] = []
    for message in messages:
        before = folded[-1] if folded else None
        if before is not None and before["role"] == "system" and message["role"] == "user":
            folded[-1] = {**message, "content": f"{before['content']}\n\n{message['content']}"}
        elif before is not None and before["role"] == "system" == message["role"]:
            folded[-1] = {**before, "content": f"{before['content']}\n\n{message['content']}"}
        else:
            folded.append(message)
    return folded


def _continues(request: ChatRequest) -> bool:
    """True when the last message is to be continued, by either of its two names."""
    asked = [
        name for name in ("continue_final_message", "continue_") if getattr(request, name) is True
    ]
    if not asked:
        return False
    if request.add_generation_prompt is True:
        raise InvalidRequestError(
            f"'{asked[0]}' and 'add_generation_prompt' cannot both be true.", param=asked[0]
        )
    if request.messages[-1].role != "assistant":
        raise InvalidRequestError(
            f"Invalid '{asked[0]}': the last message must be the assistant's.",
            param=asked[0],
            code="invalid_value",
        )
    return True


def _text(message: Message, index: int) -> str | None:
    """The text parts, a line each."""
    if message.content is None:
        if message.role == "assistant" and message.tool_calls:
            return None
        raise _missing(f"messages.{index}.content")
    if isinstance(message.content, str):
        return message.content
    for place, part in enumerate(message.content):
        if part.text is None:
            raise _missing(f"messages.{index}.content.{place}.text")
    return "\n".join(part.text or "" for part in message.content)


def _rest(message: Message, index: int) -> dict[str, Any]:
    if message.role == "tool" and message.tool_call_id is None:
        raise _missing(f"messages.{index}.tool_call_id")
    fields = {
        "name": message.name,
        "tool_call_id": message.tool_call_id,
        "reasoning_content": message.reasoning_content,
        "tool_calls": [
            _tool_call(call, f"messages.{index}.tool_calls.{place}")
            for place, call in enumerate(message.tool_calls or ())
        ],
    }
    return {name: value for name, value in fields.items() if value}


def _tool_call(call: ToolCall, path: str) -> dict[str, Any]:
    """Templates expect the arguments as an object; OpenAI's clients send them as JSON text."""
    try:
        arguments = msgspec.json.decode(call.function.arguments or "{}")
    except (msgspec.DecodeError, RecursionError):
        raise InvalidRequestError(
            f"Invalid '{path}.function.arguments': expected JSON.",
            param=f"{path}.function.arguments",
            code="invalid_value",
        ) from None
    function = {"name": call.function.name, "arguments": arguments}
    return {"id": call.id, "type": call.type, "function": function}


def _missing(path: str) -> InvalidRequestError:
    return InvalidRequestError(
        f"Missing required parameter: '{path}'.", param=path, code="missing_required_parameter"
    )
