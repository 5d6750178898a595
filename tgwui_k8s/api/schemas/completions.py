"""The body of `POST /v1/completions`."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import BeforeValidator, Discriminator, Field, Tag

from tgwui_k8s.api.schemas.fields import INT32_MAX, TokenId, as_list, honoured, refused
from tgwui_k8s.api.schemas.generation import GenerationFields
from tgwui_k8s.sampling import MAX_TOP_LOGPROBS

MAX_PROMPTS = 1024
MAX_BEST_OF = 20

_TEXTS = "array of strings"
_IDS = "array of token ids"
_LISTS_OF_IDS = "array of arrays"

TokenIds = Annotated[list[TokenId], Field(min_length=1, fail_fast=True)]
_PROMPTS = Field(min_length=1, max_length=MAX_PROMPTS, fail_fast=True)
_Texts = Annotated[list[str], _PROMPTS]
_TokenIdLists = Annotated[list[TokenIds], _PROMPTS]


def _shape(value: Any) -> str:
    """Which of the arrays this is, by its first item, so that errors point at the right place."""
    first = value[0] if isinstance(value, list) and value else None
    if isinstance(first, list):
        return _LISTS_OF_IDS
    return _IDS if isinstance(first, (int, float)) else _TEXTS


Prompts = Annotated[
    Annotated[_Texts, Tag(_TEXTS)]
    | Annotated[TokenIds, Tag(_IDS)]
    | Annotated[_TokenIdLists, Tag(_LISTS_OF_IDS)],
    Discriminator(_shape),
    BeforeValidator(as_list, json_schema_input_type=str | _Texts | TokenIds | _TokenIdLists),
]


class CompletionRequest(GenerationFields):
    """OpenAI's fields, text-generation-webui's, and our extensions."""

    prompt: Prompts = honoured("Text or token ids; several prompts in an array.", default=...)
    suffix: str | None = honoured(
        "Text after the completion; only for models with fill-in-the-middle tokens.",
    )
    max_tokens: int | None = honoured(
        "Most tokens per choice; 0 only with `echo`. Default 16.", ge=0, le=INT32_MAX
    )
    best_of: int | None = honoured(
        "Generates so many choices and returns the `n` likeliest per token; not for streams. "
        "Default `n`.",
        ge=1,
        le=MAX_BEST_OF,
    )
    echo: bool | None = honoured("The text starts with the prompt.")
    logprobs: int | None = honoured(
        "Log probabilities of the tokens and of so many alternatives; with `echo` of the prompt's "
        "tokens, too.",
        ge=0,
        le=MAX_TOP_LOGPROBS,
    )

    # Known elsewhere
    messages: Any = refused("Use /v1/chat/completions.")
    use_beam_search: Any = refused("Beam search is not supported.", neutral=(False,))
    enable_thinking: Any = refused("Completions have no chat template.", neutral=(True,))
    reasoning_effort: Any = refused("Completions have no chat template.", neutral=("medium",))
    preserve_thinking: Any = refused("Completions have no chat template.", neutral=(False,))

    @property
    def prompts(self) -> list[str] | list[list[int]]:
        """All prompts, a single one too, as a list."""
        if isinstance(self.prompt[0], int):
            return [self.prompt]
        return self.prompt
