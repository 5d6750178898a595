"""Bodies of `/tokenize`, `/detokenize` and `/generate`, in vLLM's shapes."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import Field

from tgwui_k8s.api.schemas.chat import MAX_TOOLS, Message, Tool
from tgwui_k8s.api.schemas.fields import INT32_MAX, TokenId, WireModel, honoured, refused
from tgwui_k8s.api.schemas.generation import GenerationFields

TokenIds = Annotated[list[TokenId], Field(fail_fast=True)]
Messages = Annotated[list[Message], Field(min_length=1, fail_fast=True)]


class TokenizeRequest(WireModel):
    """A text, or messages that the chat template makes one of."""

    model: str | None = honoured("A served model's name.", max_length=1000)
    prompt: str | None = honoured("The text; or `messages`.")
    messages: Messages | None = honoured("A conversation; or `prompt`.")
    add_special_tokens: bool | None = honoured(
        "The tokenizer's own special tokens around the text. Default true for a prompt, false for "
        "messages: the template writes its own."
    )
    return_token_strs: bool | None = honoured("`token_strs` beside `tokens`.")
    add_generation_prompt: bool | None = honoured(
        "Messages: end where the assistant's answer starts. Default true."
    )
    continue_final_message: bool | None = honoured("Messages: leave the last message open.")
    chat_template_kwargs: dict[str, Any] | None = honoured("Variables for the chat template.")
    tools: list[Tool] | None = honoured(
        "Messages: functions the model is told of, if its chat template knows tools.",
        max_length=MAX_TOOLS,
    )


class DetokenizeRequest(WireModel):
    """Tokens to turn into text."""

    model: str | None = honoured("A served model's name.", max_length=1000)
    tokens: TokenIds = honoured("The token ids.", default=...)


class GenerateRequest(GenerationFields):
    """vLLM's demonstration interface: a prompt and sampling parameters side by side."""

    prompt: str = honoured("The text to go on from.", default=...)
    max_tokens: int | None = honoured("Most tokens per choice. Default 16.", ge=1, le=INT32_MAX)
    stream: Any = refused("Use /v1/completions for streams.", neutral=(False,))
    stream_options: Any = refused("Use /v1/completions for streams.")
    return_token_ids: Any = refused("Use /v1/completions for token ids.", neutral=(False,))
    resume_token_ids: Any = refused("Use /v1/completions to resume.")
    resume_text_lengths: Any = refused("Use /v1/completions to resume.")
