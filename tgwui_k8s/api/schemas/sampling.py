"""The samplers' fields, the same on every generation route, with text-generation-webui's names.

Absent and null mean: the preset's value, else the default of `SamplingParams`.
"""

from __future__ import annotations

import json
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, WithJsonSchema

from tgwui_k8s.api.schemas.fields import (
    INT32_MAX,
    INT64_MAX,
    TokenId,
    WireModel,
    honoured,
    refused,
)

MAX_SEQUENCE_BREAKERS = 128
MAX_LOGIT_BIASES = 1024
MAX_LOOKUP_TOKENS = 16

SamplerName = Literal[
    "repetition_penalty",
    "presence_penalty",
    "frequency_penalty",
    "dry",
    "top_n_sigma",
    "temperature",
    "dynamic_temperature",
    "quadratic_sampling",
    "top_k",
    "top_p",
    "typical_p",
    "epsilon_cutoff",
    "eta_cutoff",
    "tfs",
    "top_a",
    "min_p",
    "adaptive_p",
    "mirostat",
    "xtc",
    "encoder_repetition_penalty",
    "no_repeat_ngram",
]
"""`SAMPLER_ORDER`, and `adaptive_p`: text-generation-webui's own list has it, and because that
sampler is always off here, its place says nothing."""


def _split_names(value: Any) -> Any:
    """A list as text-generation-webui's text box has it: one name a line, or commas."""
    if isinstance(value, str):
        return [name.strip() for name in value.replace(",", "\n").split("\n") if name.strip()]
    return value


def _parse_breakers(value: Any) -> Any:
    """text-generation-webui's spelling: a JSON array, or what stands between its brackets."""
    if not isinstance(value, str):
        return value
    text = value.strip()
    try:
        return json.loads(text if text.startswith("[") else f"[{text}]")
    except (ValueError, RecursionError):
        raise ValueError("expected strings in double quotes with commas between them.") from None


SamplerNames = Annotated[
    list[SamplerName],
    BeforeValidator(_split_names, json_schema_input_type=str | list[SamplerName]),
    Field(max_length=64),
]
SequenceBreakers = Annotated[
    list[str],
    BeforeValidator(_parse_breakers, json_schema_input_type=str | list[str]),
    Field(max_length=MAX_SEQUENCE_BREAKERS),
]
LogitBias = Annotated[
    dict[TokenId, Annotated[float, Field(ge=-100, le=100)]],
    Field(max_length=MAX_LOGIT_BIASES),
    WithJsonSchema(
        {
            "type": "object",
            "propertyNames": {"pattern": r"^\d{1,9}$"},
            "additionalProperties": {"type": "number", "minimum": -100, "maximum": 100},
            "maxProperties": MAX_LOGIT_BIASES,
        }
    ),
]
TokenIdList = Annotated[str, Field(pattern=r"^\s*(\d{1,10}\s*(,\s*\d{1,10}\s*)*)?$")]


class SamplerFields(WireModel):
    """What a preset may set, too."""

    # OpenAI's
    temperature: float | None = honoured(
        "Divides the logits; 0 takes the most likely token. Default 1.", ge=0, le=2
    )
    top_p: float | None = honoured(
        "Keeps the most likely tokens that together have this probability. Default 1.", ge=0, le=1
    )
    presence_penalty: float | None = honoured(
        "Subtracted once from the logit of every token generated before. Default 0.", ge=-2, le=2
    )
    frequency_penalty: float | None = honoured(
        "Subtracted for every occurrence among the generated tokens. Default 0.", ge=-2, le=2
    )

    # Randomness
    do_sample: bool | None = honoured("False is greedy, whatever the temperature. Default true.")
    dynamic_temperature: bool | None = honoured(
        "Temperature between `dynatemp_low` and `dynatemp_high`, by entropy. Default false."
    )
    dynatemp_low: float | None = honoured("Temperature at no entropy. Default 1.", ge=0, le=100)
    dynatemp_high: float | None = honoured(
        "Temperature at the largest entropy. Default 1.", ge=0, le=100
    )
    dynatemp_exponent: float | None = honoured(
        "Bends the way from low to high. Default 1.", gt=0, le=100
    )
    smoothing_factor: float | None = honoured("Quadratic sampling; 0 is off.", ge=0, le=100)
    smoothing_curve: float | None = honoured(
        "Curve of quadratic sampling. Default 1.", ge=0, le=100
    )

    # Truncation
    top_k: int | None = honoured(
        "Keeps the k most likely tokens; 0 and -1 are off.", ge=-1, le=INT32_MAX
    )
    min_p: float | None = honoured(
        "Drops tokens less likely than this share of the likeliest one; 0 is off.", ge=0, le=1
    )
    typical_p: float | None = honoured("Locally typical sampling; 1 is off.", gt=0, le=1)
    tfs: float | None = honoured("Tail-free sampling; 1 is off.", ge=0, le=1)
    top_a: float | None = honoured("Top-a sampling; 0 is off.", ge=0, le=1)
    epsilon_cutoff: float | None = honoured(
        "Drops tokens below this probability, in units of 1e-4; 0 is off.", ge=0, le=10000
    )
    eta_cutoff: float | None = honoured("Eta sampling, in units of 1e-4; 0 is off.", ge=0, le=10000)
    top_n_sigma: float | None = honoured(
        "Keeps logits within so many standard deviations of the largest; 0 is off.", ge=0, le=100
    )
    xtc_threshold: float | None = honoured(
        "XTC drops all tokens above this probability but the least likely. Default 0.1.",
        ge=0,
        le=1,
    )
    xtc_probability: float | None = honoured("How often XTC acts; 0 is off.", ge=0, le=1)
    mirostat_mode: int | None = honoured(
        "2 is Mirostat v2; 0 is off.",
        unsupported={1: "Mirostat 1 is not supported; use 2."},
        ge=0,
        le=2,
    )
    mirostat_tau: float | None = honoured("Mirostat's target surprise. Default 5.", ge=0, le=100)
    mirostat_eta: float | None = honoured("Mirostat's learning rate. Default 0.1.", ge=0, le=1)

    # Repetition
    repetition_penalty: float | None = honoured(
        "Divides positive and multiplies negative logits of tokens seen; 1 is off.", gt=0, le=100
    )
    repetition_penalty_range: int | None = honoured(
        "How many of the last tokens the three penalties look at; 0, the default, is all.",
        ge=0,
        le=INT32_MAX,
    )
    encoder_repetition_penalty: float | None = honoured(
        "The same for tokens outside the prompt; 1 is off.", gt=0, le=100
    )
    no_repeat_ngram_size: int | None = honoured(
        "No run of so many tokens comes twice; 0 is off.", ge=0, le=INT32_MAX
    )
    dry_multiplier: float | None = honoured(
        "Strength of the DRY penalty for repeated runs; 0 is off.", ge=0, le=100
    )
    dry_allowed_length: int | None = honoured(
        "Longest run that DRY leaves alone. Default 2.", ge=1, le=INT32_MAX
    )
    dry_base: float | None = honoured("How DRY grows with the run. Default 1.75.", ge=1, le=100)
    dry_sequence_breakers: SequenceBreakers | None = honoured(
        "Strings that end a repeated run: an array, or text-generation-webui's spelling of it. "
        r'Default: "\n", ":", "\"", "*".'
    )

    # Order and guidance
    temperature_last: bool | None = honoured("Temperature after all other samplers.")
    sampler_priority: SamplerNames | None = honoured(
        "Order of the samplers: an array, or names with commas or line breaks between them."
    )
    guidance_scale: float | None = honoured(
        "Classifier-free guidance against `negative_prompt`; 1 is off.", ge=0, le=100
    )

    # Speed
    prompt_lookup_num_tokens: int | None = honoured(
        "So many tokens are guessed from the text so far (Transformers' name) and computed ahead; "
        "what is sampled stays the same. Good for answers that quote. 0, the default, is off.",
        ge=0,
        le=MAX_LOOKUP_TOKENS,
    )

    # Known elsewhere
    penalty_alpha: Any = refused("Contrastive search is not supported.", neutral=(0,))
    adaptive_target: Any = refused("Adaptive-p sampling is not supported.", neutral=(0,))
    adaptive_decay: Any = refused("Adaptive-p sampling is not supported.", neutral=(0.9,))
    num_beams: Any = refused("Beam search is not supported.", neutral=(1,))
    length_penalty: Any = refused("Beam search is not supported.", neutral=(1,))
    early_stopping: Any = refused("Beam search is not supported.", neutral=(False,))
    min_length: Any = refused("Use min_tokens.", neutral=(0,))


class SamplingFields(SamplerFields):
    """Everything that decides which tokens come, beside the samplers themselves."""

    preset: str | None = honoured(
        "Name of a sampler preset; fields of the request beat its values.",
        min_length=1,
        max_length=200,
    )
    seed: int | None = honoured(
        "Same seed, same tokens. Null and -1: a new one for every request.",
        ge=-INT64_MAX - 1,
        le=INT64_MAX,
    )
    logit_bias: LogitBias | None = honoured("Token id to what is added to its logit.")
    custom_token_bans: TokenIdList | None = honoured(
        "Token ids that are never sampled, with commas between them."
    )
    negative_prompt: str | None = honoured("What `guidance_scale` leads away from.")
    static_cache: Any = refused("The KV cache is the server's to choose.", neutral=(False,))
