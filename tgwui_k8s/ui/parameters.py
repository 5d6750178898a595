"""The parameters a person can set, as the API's schema declares them.

Names, bounds and meanings are read from `api.schemas`, defaults from `SamplingParams`; only their
order on the page is written here. A sampler that is added to the API is on the page by itself.
"""

from __future__ import annotations

from typing import Any, Literal

import msgspec

from tgwui_k8s.api.schemas.chat import ChatRequest
from tgwui_k8s.api.schemas.fields import declaration
from tgwui_k8s.api.schemas.sampling import SamplerFields
from tgwui_k8s.sampling import SamplingParams

Kind = Literal["switch", "slider", "number", "text", "lines"]

GROUPS: dict[str, tuple[str, ...]] = {
    "length": (
        *("max_tokens", "min_tokens", "seed", "stop", "ban_eos_token", "ignore_eos"),
        *("skip_special_tokens", "truncation_length", "custom_token_bans"),
    ),
    "randomness": (
        *("temperature", "do_sample", "dynamic_temperature", "dynatemp_low", "dynatemp_high"),
        *("dynatemp_exponent", "smoothing_factor", "smoothing_curve"),
    ),
    "truncation": (
        *("top_p", "min_p", "top_k", "typical_p", "tfs", "top_a", "epsilon_cutoff", "eta_cutoff"),
        *("top_n_sigma", "xtc_threshold", "xtc_probability"),
        *("mirostat_mode", "mirostat_tau", "mirostat_eta"),
    ),
    "repetition": (
        *("repetition_penalty", "presence_penalty", "frequency_penalty"),
        *("repetition_penalty_range", "encoder_repetition_penalty", "no_repeat_ngram_size"),
        *("dry_multiplier", "dry_allowed_length", "dry_base", "dry_sequence_breakers"),
    ),
    "order": ("temperature_last", "sampler_priority", "guidance_scale", "negative_prompt"),
}
"""The order on the page; a sampler that is not here yet is shown at the end."""

DEFAULTS: dict[str, Any] = {
    "max_tokens": 512,
    "seed": -1,
    "do_sample": True,
    "skip_special_tokens": True,
    "truncation_length": 0,
}
"""Where the engine's parameters have another name, or the page another default."""

_LAST_GROUP = "order"

LINES = frozenset({"stop", "sampler_priority", "negative_prompt"})
_WIDEST_SLIDER = 4
_STEP = 0.01
_LARGEST_BOUND = 1_000_000


class Parameter(msgspec.Struct, frozen=True, kw_only=True):
    """One field of a request as the page shows it."""

    name: str
    group: str
    kind: Kind
    meaning: str
    default: Any
    neutral: Any
    """The value that need not be sent, because it is the API's own default."""
    minimum: float | None = None
    maximum: float | None = None
    step: float | None = None


def parameters() -> list[Parameter]:
    """All of them in the page's order."""
    schema = ChatRequest.model_json_schema()["properties"]
    placed = [(group, name) for group, names in GROUPS.items() for name in names]
    new = sampler_names() - {name for _, name in placed}
    placed += [(_LAST_GROUP, name) for name in sorted(new)]
    return [_parameter(name, group, schema[name]) for group, name in placed]


def sampler_names() -> set[str]:
    """Every sampler that the API honours: what has to be on the page."""
    fields = SamplerFields.model_fields.items()
    return {name for name, field in fields if declaration(field)["x-status"] == "honoured"}


def _parameter(name: str, group: str, schema: dict[str, Any]) -> Parameter:
    shape = next((part for part in schema.get("anyOf", ()) if part.get("type") != "null"), schema)
    minimum = shape.get("minimum", shape.get("exclusiveMinimum"))
    maximum = shape.get("maximum")
    kind = _kind(name, shape.get("type"), minimum, maximum)
    default = _default(name, kind)
    step = None
    if kind in ("slider", "number"):
        step = 1 if shape["type"] == "integer" else _STEP
    if "x-unsupported" in schema:  # Mirostat has the modes 0 and 2
        step = 2
    return Parameter(
        name=name,
        group=group,
        kind=kind,
        meaning=schema["description"],
        default=default,
        neutral=None if name == "max_tokens" else default,
        minimum=_STEP if "exclusiveMinimum" in shape else _shown(minimum),
        maximum=_shown(maximum),
        step=step,
    )


def _kind(name: str, schema_type: str | None, minimum: float | None, maximum: float | None) -> Kind:
    if schema_type == "boolean":
        return "switch"
    if schema_type in ("integer", "number"):
        is_narrow = minimum is not None and maximum is not None
        return "slider" if is_narrow and maximum - minimum <= _WIDEST_SLIDER else "number"  # type: ignore[operator]
    return "lines" if name in LINES else "text"


def _shown(bound: float | None) -> float | None:
    """A bound that a person may run into; those of number types are not worth showing."""
    return bound if bound is not None and abs(bound) <= _LARGEST_BOUND else None


def _default(name: str, kind: Kind) -> Any:
    if name in DEFAULTS:
        return DEFAULTS[name]
    if kind in ("text", "lines"):
        return ""
    defaults = {field.name: field.default for field in msgspec.structs.fields(SamplingParams)}
    return defaults.get(name, False if kind == "switch" else None)
