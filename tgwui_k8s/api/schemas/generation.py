"""Fields that completions and chat share: the model, choices, lengths, stopping, extensions."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import BeforeValidator, Field

from tgwui_k8s.api.schemas.fields import (
    INT32_MAX,
    TokenId,
    WireModel,
    accepted,
    as_list,
    honoured,
    refused,
)
from tgwui_k8s.api.schemas.sampling import SamplingFields

MAX_CHOICES = 128
MAX_STOP_STRINGS = 16
MAX_STOP_TOKENS = 128
MAX_STOP_LENGTH = 1000


StopString = Annotated[str, Field(min_length=1, max_length=MAX_STOP_LENGTH)]
StopStrings = Annotated[
    list[StopString],
    BeforeValidator(as_list, json_schema_input_type=StopString | list[StopString]),
    Field(max_length=MAX_STOP_STRINGS),
]


class StreamOptions(WireModel):
    """What a stream carries beside the text."""

    include_usage: bool | None = honoured("A last chunk with the usage and no choices.")
    include_obfuscation: Any = refused("Chunks are not padded.", neutral=(False,))


class GenerationFields(SamplingFields):
    """What a client may ask of any generation."""

    model: str | None = honoured(
        "A served model's name; absent: the loaded model. Others are a 404.", max_length=1000
    )
    n: int | None = honoured("Choices per prompt. Default 1.", ge=1, le=MAX_CHOICES)
    stop: StopStrings | None = honoured("Strings that end the text; they are not part of it.")
    stream: bool | None = honoured("Server-sent events instead of one answer.")
    stream_options: StreamOptions | None = honoured("Only with `stream`.")
    user: str | None = accepted("A hint for abuse detection, which there is none of.")

    # Lengths and stopping
    min_tokens: int | None = honoured(
        "Nothing ends the choice before so many tokens. Default 0.", ge=0, le=INT32_MAX
    )
    auto_max_new_tokens: bool | None = honoured(
        "As many tokens as the context has room for; beats `max_tokens`."
    )
    stop_token_ids: list[TokenId] | None = honoured(
        "Token ids that end the choice.", max_length=MAX_STOP_TOKENS
    )
    ignore_eos: bool | None = honoured("Generate on after end-of-sequence tokens.")
    ban_eos_token: bool | None = honoured("Never sample an end-of-sequence token.")
    max_tokens_second: Any = refused("There is no limit of speed.", neutral=(0,))

    # Structure: at most one of these
    guided_json: dict[str, Any] | str | None = honoured(
        "A JSON schema the text must match. Keywords that cannot be enforced are a 400."
    )
    guided_regex: str | None = honoured(
        "A regular expression the whole text must match.", min_length=1
    )
    guided_choice: list[Annotated[str, Field(min_length=1)]] | None = honoured(
        "Texts of which the answer must be one.", min_length=1, max_length=1000
    )
    guided_grammar: str | None = honoured("A grammar in Lark or GBNF.", min_length=1)
    grammar_string: str | None = honoured(
        "text-generation-webui's name for `guided_grammar`; empty: none."
    )

    # Prompt and text
    add_bos_token: bool | None = honoured(
        "True: exactly one beginning-of-sequence token; false: none. Default: as the model's "
        "tokenizer or template does."
    )
    skip_special_tokens: bool | None = honoured("Special tokens have no text. Default true.")
    truncation_length: int | None = honoured(
        "Keeps only the last so many tokens of the prompt; 0 keeps all.", ge=0, le=INT32_MAX
    )

    # Extensions
    priority: int | None = honoured("Lower goes first. Default 0.", ge=-INT32_MAX - 1, le=INT32_MAX)
    timeout_s: float | None = honoured(
        "Deadline in seconds, queueing included; at most the server's.", gt=0
    )
    speculative: Any = refused("Speculative decoding is not there yet.", neutral=(False,))
    return_token_ids: bool | None = honoured(
        "`token_ids`, `text_offset` and `text_length` on every choice (of the raw text, which is "
        "more than a chat answer shows), `prompt_token_ids` on the first of every prompt."
    )
    resume_token_ids: list[list[TokenId]] | None = honoured(
        "Per choice: tokens the same request has generated elsewhere; generation goes on after "
        "them, and they are not sent again."
    )
    resume_text_lengths: list[Annotated[int, Field(ge=0, le=INT32_MAX)]] | None = honoured(
        "Per choice: code points of generated text that have been delivered already."
    )
