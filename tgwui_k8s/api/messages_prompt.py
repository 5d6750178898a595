"""Anthropic's request as a chat request: one conversation, said in other words."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import groupby
from typing import Any

import msgspec

from tgwui_k8s.api.body import make_body
from tgwui_k8s.api.schemas.chat import ChatRequest
from tgwui_k8s.api.schemas.fields import refuse_unsupported
from tgwui_k8s.api.schemas.messages import (
    Block,
    InputMessage,
    MessagesRequest,
    PromptFields,
    TextBlock,
    Texts,
    ThinkingBlock,
    Tool,
    ToolChoice,
    ToolResultBlock,
    ToolUseBlock,
)
from tgwui_k8s.api.translated_errors import FieldNames, naming_fields
from tgwui_k8s.errors import InvalidRequestError

FIELD_NAMES: FieldNames = {
    r"messages\..*": "messages",  # they are not as many
    r"tools\.(\d+)\.function\.parameters": r"tools.\1.input_schema",
    r"tools\.(\d+)\.function\.": r"tools.\1.",
    r"tool_choice\.function\.": "tool_choice.",
    r"parallel_tool_calls": "tool_choice.disable_parallel_tool_use",
    r"enable_thinking": "thinking.type",
    r"thinking_token_budget": "thinking.budget_tokens",
    r"response_format\.json_schema": "output_config.format",
    r"response_format": "output_config.format",
    r"max_completion_tokens": "max_tokens",
    r"stop": "stop_sequences",
}
"""From the chat request's fields to Anthropic's."""

_TOOL_CHOICES = {"auto": "auto", "any": "required", "none": "none"}
_BLOCKS_OF_ROLES: dict[str, tuple[type, ...]] = {
    "user": (TextBlock, ToolResultBlock),
    "assistant": (TextBlock, ThinkingBlock, ToolUseBlock),
    "system": (TextBlock,),
}


def chat_request(request: PromptFields) -> ChatRequest:
    """The same as a chat request. Raises `InvalidRequestError` for what makes no conversation."""
    refuse_unsupported(request)
    fields = {**_conversation(request), **_constraints(request)}
    if isinstance(request, MessagesRequest):
        fields |= {
            "max_completion_tokens": request.max_tokens,
            "stop": request.stop_sequences,
            "temperature": request.temperature,
            "top_k": request.top_k,
            "top_p": request.top_p,
        }
    with naming_fields(FIELD_NAMES):
        return make_body(fields, ChatRequest)


def _conversation(request: PromptFields) -> dict[str, Any]:
    last = request.messages[-1]
    goes_on = last.role == "assistant"
    if goes_on and any(isinstance(block, ToolUseBlock) for block in last.content):
        raise InvalidRequestError(
            "A 'tool_use' block must be followed by the user's 'tool_result'.", param="messages"
        )
    system = [{"role": "system", "content": _text(request.system)}] if request.system else []
    turns = (
        turn
        for index, message in enumerate(request.messages)
        for turn in _turns(message, f"messages.{index}.content")
    )
    return {
        "model": request.model,
        "messages": [*system, *turns],
        "continue_final_message": True if goes_on else None,
    }


def _constraints(request: PromptFields) -> dict[str, Any]:
    """Tools, reasoning and the shape of the answer."""
    fields: dict[str, Any] = {"tools": [_tool(tool) for tool in request.tools or ()]}
    if request.tool_choice is not None:
        fields["tool_choice"] = _tool_choice(request.tool_choice)
        if request.tool_choice.disable_parallel_tool_use:
            fields["parallel_tool_calls"] = False
    if request.thinking is not None and request.thinking.type != "adaptive":
        fields["enable_thinking"] = request.thinking.type == "enabled"
        fields["thinking_token_budget"] = request.thinking.budget_tokens
    output = request.output_config
    if output is not None and output.format is not None:
        schema = {"name": "answer", "schema": output.format.schema_, "strict": True}
        fields["response_format"] = {"type": "json_schema", "json_schema": schema}
    return fields


def _tool(tool: Tool) -> dict[str, Any]:
    function = {
        "name": tool.name,
        "description": tool.description,
        "parameters": tool.input_schema,
        "strict": tool.strict,
    }
    return {"type": "function", "function": function}


def _tool_choice(choice: ToolChoice) -> Any:
    if choice.type != "tool":
        return _TOOL_CHOICES[choice.type]
    if choice.name is None:
        raise InvalidRequestError(
            "Missing required parameter: 'tool_choice.name'.", param="tool_choice.name"
        )
    return {"type": "function", "function": {"name": choice.name}}


def _turns(message: InputMessage, path: str) -> Iterator[dict[str, Any]]:
    """The chat messages that one of Anthropic's is: each tool result is one of its own."""
    if isinstance(message.content, str):
        yield {"role": message.role, "content": message.content}
        return
    for place, block in enumerate(message.content):
        if not isinstance(block, _BLOCKS_OF_ROLES[message.role]):
            raise InvalidRequestError(
                f"Invalid '{path}.{place}': a message of the role '{message.role}' has no "
                f"'{block.type}' blocks.",
                param=f"{path}.{place}",
            )
    if message.role == "assistant":
        yield _assistant_turn(message.content)
        return
    for is_result, blocks in groupby(message.content, _is_result):
        if is_result:
            yield from (_tool_turn(block) for block in blocks if isinstance(block, ToolResultBlock))
        else:
            yield {"role": message.role, "content": _joined(blocks)}


def _is_result(block: Block) -> bool:
    return isinstance(block, ToolResultBlock)


def _assistant_turn(blocks: Iterable[Block]) -> dict[str, Any]:
    blocks = list(blocks)
    calls = [
        {
            "id": block.id,
            "type": "function",
            "function": {
                "name": block.name,
                "arguments": msgspec.json.encode(block.input).decode(),
            },
        }
        for block in blocks
        if isinstance(block, ToolUseBlock)
    ]
    thoughts = [block.thinking for block in blocks if isinstance(block, ThinkingBlock)]
    turn = {
        "role": "assistant",
        "content": _joined(blocks),
        "tool_calls": calls,
        "reasoning_content": "\n".join(thoughts),
    }
    return {name: value for name, value in turn.items() if value or name == "content"}


def _tool_turn(block: ToolResultBlock) -> dict[str, Any]:
    content = _text(block.content) if block.content is not None else ""
    return {"role": "tool", "tool_call_id": block.tool_use_id, "content": content}


def _joined(blocks: Iterable[Block]) -> str:
    """The text blocks, a line each."""
    return "\n".join(block.text for block in blocks if isinstance(block, TextBlock))


def _text(texts: Texts) -> str:
    return texts if isinstance(texts, str) else _joined(texts)
