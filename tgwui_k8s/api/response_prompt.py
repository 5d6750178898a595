"""A request for a response as a chat request: its items are the messages of a conversation."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from tgwui_k8s.api.body import make_body
from tgwui_k8s.api.schemas.chat import ChatRequest
from tgwui_k8s.api.schemas.fields import refuse_unsupported
from tgwui_k8s.api.schemas.response_request import (
    Content,
    InputItem,
    NamedTool,
    ResponseRequest,
    TextFormat,
)
from tgwui_k8s.api.translated_errors import FieldNames, naming_fields
from tgwui_k8s.errors import InvalidRequestError

FIELD_NAMES: FieldNames = {
    r"messages(\..*)?": "input",  # items are not as many
    r"tools\.(\d+)\.function\.": r"tools.\1.",
    r"tool_choice\.function\.": "tool_choice.",
    r"enable_thinking": "reasoning.effort",
    r"response_format\.json_schema": "text.format",
    r"response_format": "text.format",
    r"max_completion_tokens": "max_output_tokens",
}
"""From the chat request's fields to those of `/v1/responses`."""

_OF_TOOLS = ("name", "description", "parameters", "strict")
_OF_FORMATS = ("name", "description", "strict")


def chat_request(request: ResponseRequest) -> ChatRequest:
    """The same as a chat request. Raises `InvalidRequestError` for what makes no conversation."""
    refuse_unsupported(request)
    system = [{"role": "system", "content": request.instructions}] if request.instructions else []
    fields = {
        "model": request.model,
        "messages": [*system, *_turns(request)],
        "max_completion_tokens": request.max_output_tokens,
        "temperature": request.temperature,
        "top_p": request.top_p,
        "enable_thinking": _enable_thinking(request),
        "tools": [_tool(tool) for tool in request.tools or ()],
        "tool_choice": _tool_choice(request),
        "parallel_tool_calls": request.parallel_tool_calls,
        "response_format": _response_format(request),
    }
    with naming_fields(FIELD_NAMES):
        return make_body(fields, ChatRequest)


def _turns(request: ResponseRequest) -> list[dict[str, Any]]:
    """The messages. What the assistant thought, said and called in one go is one of them."""
    if isinstance(request.input, str):
        return [{"role": "user", "content": request.input}]
    turns: list[dict[str, Any]] = []
    for index, item in enumerate(request.input):
        path = f"input.{index}"
        if item.type == "message":
            role = _required(item.role, f"{path}.role")
            text = _text(_required(item.content, f"{path}.content"), f"{path}.content")
            if role == "assistant":
                _add_text(_assistant_turn(turns), text)
            else:
                turns.append({"role": role, "content": text})
        elif item.type == "function_call":
            _assistant_turn(turns).setdefault("tool_calls", []).append(_call(item, path))
        elif item.type == "function_call_output":
            turns.append(_output(item, path))
        elif item.content is not None:
            thought = _text(item.content, f"{path}.content")
            turns.append({"role": "assistant", "content": "", "reasoning_content": thought})
    return turns


def _assistant_turn(turns: list[dict[str, Any]]) -> dict[str, Any]:
    """The assistant's turn at the end of the conversation, which goes on."""
    if not turns or turns[-1]["role"] != "assistant":
        turns.append({"role": "assistant", "content": ""})
    return turns[-1]


def _add_text(turn: dict[str, Any], text: str) -> None:
    turn["content"] = f"{turn['content']}\n{text}" if turn["content"] else text


def _call(item: InputItem, path: str) -> dict[str, Any]:
    function = {
        "name": _required(item.name, f"{path}.name"),
        "arguments": _required(item.arguments, f"{path}.arguments"),
    }
    call_id = _required(item.call_id, f"{path}.call_id")
    return {"id": call_id, "type": "function", "function": function}


def _output(item: InputItem, path: str) -> dict[str, Any]:
    return {
        "role": "tool",
        "tool_call_id": _required(item.call_id, f"{path}.call_id"),
        "content": _text(_required(item.output, f"{path}.output"), f"{path}.output"),
    }


def _text(content: Content, path: str) -> str:
    """The text parts, a line each."""
    if isinstance(content, str):
        return content
    texts: Iterable[str] = (
        _required(part.text, f"{path}.{place}.text") for place, part in enumerate(content)
    )
    return "\n".join(texts)


def _tool(tool: Any) -> dict[str, Any]:
    function = {name: getattr(tool, name) for name in _OF_TOOLS}
    return {"type": "function", "function": function}


def _enable_thinking(request: ResponseRequest) -> bool | None:
    is_off = request.reasoning is not None and request.reasoning.effort == "none"
    return False if is_off else None


def _tool_choice(request: ResponseRequest) -> Any:
    choice = request.tool_choice
    if isinstance(choice, NamedTool):
        return {"type": "function", "function": {"name": choice.name}}
    return choice


def _response_format(request: ResponseRequest) -> dict[str, Any] | None:
    wanted: TextFormat | None = request.text.format if request.text is not None else None
    if wanted is None:
        return None
    if wanted.type != "json_schema":
        return {"type": wanted.type}
    schema = {name: getattr(wanted, name) for name in _OF_FORMATS}
    schema["schema"] = _required(wanted.schema_, "text.format.schema")
    return {"type": "json_schema", "json_schema": schema}


def _required(value: Any, path: str) -> Any:
    if value is None:
        raise InvalidRequestError(
            f"Missing required parameter: '{path}'.", param=path, code="missing_required_parameter"
        )
    return value
