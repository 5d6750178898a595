"""Bodies of text-generation-webui's own routes below `/v1/internal`."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import Field

from tgwui_k8s.api.schemas.fields import TokenId, WireModel, honoured, refused
from tgwui_k8s.api.schemas.sampling import SamplingFields

MAX_TOP_LOGITS = 1000

AdapterName = Annotated[str, Field(min_length=1, max_length=200)]

TokenIds = Annotated[list[TokenId], Field(fail_fast=True)]


class EncodeRequest(WireModel):
    """Text to turn into tokens."""

    text: str = honoured("The text.", default=...)


class DecodeRequest(WireModel):
    """Tokens to turn into text."""

    tokens: TokenIds = honoured("The token ids.", default=...)


class LogitsRequest(SamplingFields):
    """A prompt whose next token is of interest."""

    prompt: str = honoured("Text before the token.", default=...)
    top_logits: int | None = honoured("How many tokens. Default 50.", ge=1, le=MAX_TOP_LOGITS)
    use_samplers: bool | None = honoured(
        "Probabilities after all samplers instead of the model's own. Default false; sampler "
        "fields need true."
    )


class LoadModelRequest(WireModel):
    """A model to load in place of the present one."""

    model_name: str = honoured(
        "A folder or file in the model directory, or `demo`.",
        default=...,
        min_length=1,
        max_length=1000,
    )
    args: dict[str, str | bool | int | float | None] | None = honoured(
        "Settings of the sections model and engine, such as `loader` or `max_model_len`."
    )
    settings: Any = refused("Sampler defaults belong to the requests.", neutral=({},))
    instruction_template: Any = refused("Use args with chat_template.")
    instruction_template_str: Any = refused("Use args with chat_template.")


AdapterNames = Annotated[list[AdapterName], Field(min_length=1, max_length=100)]


class LoadAdaptersRequest(WireModel):
    """Adapters to load."""

    lora_names: AdapterNames = honoured("Folders in the server's `--lora-dir`.", default=...)


class UnloadAdaptersRequest(WireModel):
    """Adapters to unload."""

    lora_names: AdapterNames | None = honoured("Names as in `/v1/models`. Default: all adapters.")
