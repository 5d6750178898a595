"""From a request's sampler fields to `SamplingParams`: presets, token ids, what the model can do.

Precedence: an explicit field of the request, then the preset's value, then the default.
"""

from __future__ import annotations

import secrets
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
from pydantic import ValidationError

from tgwui_k8s.api.schemas.fields import declaration, refuse_unsupported
from tgwui_k8s.api.schemas.generation import GenerationFields
from tgwui_k8s.api.schemas.sampling import SamplerFields, SamplingFields
from tgwui_k8s.api.state import ServedModel
from tgwui_k8s.errors import InvalidRequestError, UnsupportedParameterError
from tgwui_k8s.presets import load_preset
from tgwui_k8s.sampling import SAMPLER_ORDER, SamplingParams

DEFAULT_SEQUENCE_BREAKERS = ("\n", ":", '"', "*")

_SEED_MASK = 2**64 - 1

_PLAIN_FIELDS = tuple(
    name
    for name, field in SamplerFields.model_fields.items()
    if declaration(field)["x-status"] == "honoured"
    and name not in ("do_sample", "sampler_priority", "dry_sequence_breakers")
)
"""Fields that `SamplingParams` has under the same name with the same meaning."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Reported:
    """Which log probabilities the engine shall report; None: none."""

    logprobs: int | None = None
    prompt_logprobs: int | None = None


def sampling_params(
    request: GenerationFields,
    model: ServedModel,
    *,
    max_tokens: int,
    reported: Reported,
    preset_dir: Path | None = None,
) -> SamplingParams:
    """Resolve every sampler field of `request`.

    Raises `InvalidRequestError` naming the field for what the model's vocabulary or capabilities
    do not allow.
    """
    _check_capabilities(reported, model)
    params = SamplingParams(
        **sampler_values(request, model, preset_dir),
        max_tokens=max_tokens,
        min_tokens=request.min_tokens or 0,
        stop_token_ids=_known_ids(request.stop_token_ids or (), model, "stop_token_ids"),
        ignore_eos=request.ignore_eos or False,
        ban_eos_token=request.ban_eos_token or False,
        logprobs=reported.logprobs,
        prompt_logprobs=reported.prompt_logprobs,
    )
    _check_honoured(params, model)
    return params


def sampler_values(
    request: SamplingFields, model: ServedModel, preset_dir: Path | None
) -> dict[str, Any]:
    """The part of `SamplingParams` that `SamplingFields` decide, less what is at its default."""
    samplers = merged_samplers(request, preset_dir)
    if samplers.get("guidance_scale", 1.0) != 1.0 and not model.info.capabilities.guidance:
        raise _lacking("guidance_scale", "guidance")
    if samplers.get("prompt_lookup_num_tokens") and not model.info.capabilities.prompt_lookup:
        raise _lacking("prompt_lookup_num_tokens", "way to compute tokens ahead")
    values = {name: samplers[name] for name in _PLAIN_FIELDS if name in samplers}
    if samplers.get("do_sample") is False:
        values["temperature"] = 0.0
    if values.get("top_k") == -1:
        values["top_k"] = 0
    if values.get("dry_multiplier"):
        breakers = samplers.get("dry_sequence_breakers", DEFAULT_SEQUENCE_BREAKERS)
        values["dry_sequence_breakers"] = model.tokenizer.sequence_breaker_ids(breakers)
    return {
        **values,
        "seed": _seed(request.seed),
        "sampler_priority": _order(samplers.get("sampler_priority", ())),
        "logit_bias": _logit_bias(request, model),
        "banned_token_ids": _known_ids(_listed_ids(request), model, "custom_token_bans"),
    }


def with_new_seed(params: SamplingParams) -> SamplingParams:
    """The same parameters with noise of their own."""
    return msgspec.structs.replace(params, seed=_seed(None))


def has_seed(request: SamplingFields) -> bool:
    """False where the client left the seed to us."""
    return request.seed not in (None, -1)


def merged_samplers(request: SamplingFields, preset_dir: Path | None) -> dict[str, Any]:
    """The sampler fields that were given, by the request or its preset."""
    preset = _preset(request.preset, preset_dir) if request.preset is not None else {}
    explicit = {name: getattr(request, name) for name in SamplerFields.model_fields}
    return {**preset, **{name: value for name, value in explicit.items() if value is not None}}


def _preset(name: str, directory: Path | None) -> dict[str, Any]:
    """A preset's values, held to the same rules as a request's."""
    try:
        preset = SamplerFields.model_validate(load_preset(name, directory))
        refuse_unsupported(preset)
    except (ValidationError, UnsupportedParameterError) as error:
        fields = (
            [str(part) for part in error.errors()[0]["loc"][:1]]
            if isinstance(error, ValidationError)
            else [str(error.param)]
        )
        raise InvalidRequestError(
            f"The preset '{name[:200]}' has a value for '{fields[0]}' that cannot be honoured.",
            param="preset",
            code="invalid_value",
        ) from error
    return preset.model_dump(exclude_none=True)


def _check_capabilities(reported: Reported, model: ServedModel) -> None:
    capabilities = model.info.capabilities
    if reported.logprobs is not None and not capabilities.logprobs:
        raise _lacking("logprobs", "log probabilities")
    if reported.prompt_logprobs is not None and not capabilities.prompt_logprobs:
        raise _lacking("echo", "log probabilities of the prompt")


def _check_honoured(params: SamplingParams, model: ServedModel) -> None:
    """Refuse what a backend that samples by itself would leave out."""
    lacking = model.info.capabilities.unsupported_params
    for field in msgspec.structs.fields(SamplingParams) if lacking else ():
        neutral = field.default if field.default is not msgspec.NODEFAULT else {}
        if field.name in lacking and getattr(params, field.name) != neutral:
            raise _lacking(field.name, f"'{field.name}' with this loader")


def _lacking(param: str, what: str) -> UnsupportedParameterError:
    return UnsupportedParameterError(
        f"Unsupported parameter: '{param}'. The loaded model has no {what}.", param=param
    )


def _seed(seed: int | None) -> int:
    return secrets.randbits(64) if seed is None or seed == -1 else seed & _SEED_MASK


def _order(names: Iterable[str]) -> tuple[str, ...]:
    """Each sampler once. `adaptive_p` is always off, so its place means nothing."""
    return tuple(name for name in dict.fromkeys(names) if name in SAMPLER_ORDER)


def _listed_ids(request: SamplingFields) -> list[int]:
    text = request.custom_token_bans or ""
    return [int(part) for part in text.split(",") if part.strip()]


def _logit_bias(request: SamplingFields, model: ServedModel) -> dict[int, float]:
    biases = request.logit_bias or {}
    _known_ids(biases, model, "logit_bias")
    return dict(biases)


def _known_ids(token_ids: Iterable[int], model: ServedModel, param: str) -> tuple[int, ...]:
    ids = tuple(token_ids)
    check_token_ids(ids, model, param)
    return ids


def check_token_ids(token_ids: Iterable[int], model: ServedModel, param: str) -> None:
    """Raise `InvalidRequestError` where the model's vocabulary lacks one of the ids."""
    largest = max(token_ids, default=0)
    if largest >= model.info.vocab_size:
        raise InvalidRequestError(
            f"Invalid '{param}': token id {largest} is not in the model's vocabulary of "
            f"{model.info.vocab_size} tokens.",
            param=param,
            code="invalid_value",
        )
