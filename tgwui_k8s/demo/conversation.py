"""Conversations as the chat template takes them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

Message = dict[str, Any]
Tool = dict[str, Any]


@dataclass(frozen=True)
class Conversation:
    """Messages, and the tools that are listed before them."""

    messages: tuple[Message, ...]
    tools: tuple[Tool, ...] = ()


def turn(question: str, answer: str) -> list[Message]:
    """A question and its answer."""
    return [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
