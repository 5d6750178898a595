"""The model's chat template: messages in, prompt text out, as Transformers renders it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from datetime import datetime
from pathlib import Path
from typing import Any

from jinja2 import TemplateSyntaxError

from tgwui_k8s.api.special_tokens import read_json_object
from tgwui_k8s.api.template_sandbox import (
    ChatEnvironment,
    TemplateRefusalError,
    render_bounded,
)
from tgwui_k8s.errors import BrokenModelError, InvalidRequestError, UsageError

Message = dict[str, Any]

RESERVED_NAMES = frozenset(
    {
        "messages",
        "tools",
        "add_generation_prompt",
        "continue_final_message",
        "chat_template",
        "tokenize",
    }
)
"""What `chat_template_kwargs` cannot set: these have fields of their own, or no meaning here."""

DEFAULT = "default"
TOOL_USE = "tool_use"
_REASONING_FIELDS = ("reasoning_content", "thinking", "reasoning")
_END_MARK = "⟦the final message ends here⟧ "
"""Its trailing space shows whether the template trims what it is given."""
_MAX_MESSAGE = 1000


class ChatTemplate:
    """A model's template, or several by name. Safe to use from several threads.

    `render` is CPU work of a millisecond for usual chats; call it in a thread for long ones.
    """

    def __init__(
        self,
        sources: Mapping[str, str],
        special_tokens: Mapping[str, str],
        *,
        now: Callable[[], datetime] = datetime.now,
    ) -> None:
        """`sources`: template text by name, `default` among them; `now` feeds `strftime_now`.

        Raises `jinja2.TemplateSyntaxError`.
        """
        environment = ChatEnvironment(now)
        self._templates = {
            name: environment.compile_checked(source) for name, source in sources.items()
        }
        self._special_tokens = dict(special_tokens)
        self.source = sources[DEFAULT]
        """The text of the template used without tools."""
        self.text = "\n".join(sources.values())
        """The text of all of them."""

    @classmethod
    def load(
        cls, folder: Path, special_tokens: Mapping[str, str], override: Path | None = None
    ) -> ChatTemplate | None:
        """`override`, else the folder's template; None where it has none.

        In the folder, chat_template.jinja (with additional_chat_templates/*.jinja) goes before
        chat_template.json, and that before tokenizer_config.json.
        Raises `UsageError` for the override, `BrokenModelError` for the folder's.
        """
        if override is not None:
            try:
                return cls({DEFAULT: override.read_text("utf-8")}, special_tokens)
            except (OSError, ValueError, TemplateSyntaxError, RecursionError) as error:
                raise UsageError(f"--chat-template {override}: {_describe(error)}") from error
        sources = _read_sources(folder)
        if not sources:
            return None
        try:
            return cls(sources, special_tokens)
        except (TemplateSyntaxError, RecursionError) as error:
            raise BrokenModelError(
                f"{folder}: the chat template does not compile: {_describe(error)} "
                "Another one can be given with --chat-template."
            ) from error

    def render(
        self,
        messages: list[Message],
        *,
        tools: list[dict[str, Any]] | None = None,
        add_generation_prompt: bool = True,
        continue_final_message: bool = False,
        template_kwargs: Mapping[str, Any] | None = None,
    ) -> str:
        """The prompt. `continue_final_message` ends it right after the last message's content,
        in place of the generation prompt.

        Raises `InvalidRequestError`: `param="messages"` when the template refuses, fails or
        reaches its limits, `param="chat_template_kwargs.<name>"` for a reserved name.
        """
        _check_names(template_kwargs or {})
        conversation = [_prepare(message) for message in messages]
        if not conversation:
            raise InvalidRequestError("There must be at least one message.", param="messages")
        if continue_final_message:
            conversation[-1] = _mark_end(conversation[-1])
        variables = {
            "documents": None,
            **self._special_tokens,
            **(template_kwargs or {}),
            "messages": conversation,
            "tools": tools,
            "add_generation_prompt": add_generation_prompt and not continue_final_message,
        }
        prompt = self._render(TOOL_USE if tools is not None else DEFAULT, variables)
        return _cut_at_mark(prompt) if continue_final_message else prompt

    def _render(self, name: str, variables: Mapping[str, Any]) -> str:
        template = self._templates.get(name, self._templates[DEFAULT])
        try:
            return render_bounded(template, variables)
        except TemplateRefusalError as error:
            reason = f"The model's chat template refuses these messages: {error.message}"
        except Exception as error:  # noqa: BLE001 - a template can raise anything Python can
            reason = f"The model's chat template cannot render these messages: {_describe(error)}"
        raise InvalidRequestError(reason[:_MAX_MESSAGE], param="messages")


def _read_sources(folder: Path) -> dict[str, str]:
    """Template text by name from the folder's files; empty where it has no template."""
    main = folder / "chat_template.jinja"
    try:
        if main.is_file():
            more = sorted((folder / "additional_chat_templates").glob("*.jinja"))
            return {path.stem: path.read_text("utf-8") for path in more} | {
                DEFAULT: main.read_text("utf-8")
            }
    except (OSError, ValueError) as error:
        raise BrokenModelError(f"{folder}: the chat template is unreadable: {error}") from error
    for name in ("chat_template.json", "tokenizer_config.json"):
        value = read_json_object(folder / name).get("chat_template")
        if value:
            return _named_sources(value, folder / name)
    return {}


def _named_sources(value: object, path: Path) -> dict[str, str]:
    """`value` is a template, an object of templates by name, or a list of name and template."""
    if isinstance(value, str):
        return {DEFAULT: value}
    if isinstance(value, list) and all(isinstance(item, dict) for item in value):
        value = {item.get("name"): item.get("template") for item in value}
    if not isinstance(value, dict) or not all(
        isinstance(text, str) for pair in value.items() for text in pair
    ):
        raise BrokenModelError(f"{path}: chat_template is neither text nor templates by name.")
    if DEFAULT not in value:
        raise BrokenModelError(f"{path}: none of the chat templates is named '{DEFAULT}'.")
    return value


def _check_names(template_kwargs: Mapping[str, Any]) -> None:
    for name in RESERVED_NAMES & template_kwargs.keys():
        raise InvalidRequestError(
            f"'{name}' cannot be set through chat_template_kwargs.",
            param=f"chat_template_kwargs.{name}",
        )


def _prepare(message: Message) -> Message:
    """As templates expect it: nothing that is None, reasoning under each of its names."""
    prepared = {key: value for key, value in message.items() if value is not None}
    for field in _REASONING_FIELDS:
        if field in prepared:
            reasoning = prepared[field]
            return {"thinking": reasoning, **prepared, "reasoning_content": reasoning}
    return prepared


def _mark_end(message: Message) -> Message:
    """The message with a mark behind its content, or behind its last text part."""
    content = message.get("content")
    if isinstance(content, str):
        return {**message, "content": content + _END_MARK}
    parts = list(content) if isinstance(content, list) else []
    for index in reversed(range(len(parts))):
        if "text" in parts[index]:
            parts[index] = {**parts[index], "text": parts[index]["text"] + _END_MARK}
            return {**message, "content": parts}
    raise InvalidRequestError(
        "continue_final_message needs a last message with text.", param="messages"
    )


def _cut_at_mark(prompt: str) -> str:
    end = prompt.rfind(_END_MARK.rstrip())
    if end < 0:
        raise InvalidRequestError(
            "The model's chat template drops the last message, which cannot be continued.",
            param="messages",
        )
    text = prompt[:end]
    # A template that trims would have trimmed the content itself, had there been no mark.
    return text if prompt.startswith(_END_MARK, end) else text.rstrip()


def _describe(error: Exception) -> str:
    if isinstance(error, TemplateSyntaxError):
        return f"line {error.lineno}: {error.message}"
    if isinstance(error, OSError):
        return f"{error.strerror}."
    return f"{type(error).__name__}: {error}"
