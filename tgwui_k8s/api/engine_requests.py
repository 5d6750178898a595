"""From wire to engine: lengths, resume, guidance; one `GenerationRequest` per prompt.

What only completions or only chat knows (how a prompt comes about, which log probabilities are
wanted, the default length) is in `Asked`; everything here holds for both.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import msgspec

from tgwui_k8s.api.prompt_tokens import prompt_tokens
from tgwui_k8s.api.sampling_fields import (
    Reported,
    check_token_ids,
    has_seed,
    sampling_params,
    with_new_seed,
)
from tgwui_k8s.api.schemas.generation import GenerationFields
from tgwui_k8s.api.state import ServedModel
from tgwui_k8s.config import ServerSettings
from tgwui_k8s.contract import GenerationRequest
from tgwui_k8s.errors import (
    ContextLengthError,
    InvalidRequestError,
    UnsupportedParameterError,
)
from tgwui_k8s.sampling import SamplingParams

MAX_CHOICES_IN_ALL = 2048
"""Over all prompts of one request."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """What a route has understood of its request."""

    response_id: str
    param: str
    """The field the prompts come from, for errors: `prompt` or `messages`."""
    prompts: Sequence[list[int]]
    max_tokens: int | None
    """None: the default."""
    default_max_tokens: int | None
    """None: the rest of the context."""
    num_choices: int
    reported: Reported
    grammar: str = ""
    """What every choice must match."""


def engine_requests(
    request: GenerationFields, asked: Asked, model: ServedModel, settings: ServerSettings
) -> list[GenerationRequest]:
    """What the engine shall do, one request per prompt.

    Raises `InvalidRequestError` where lengths, token ids or extensions do not fit the model.
    """
    if not model.info.capabilities.generation:
        raise UnsupportedParameterError(
            "The loaded model makes embeddings and generates no text: use /v1/embeddings.",
            param="model",
        )
    _check_num_choices(asked)
    prompts = [_usable(prompt, request, asked.param, model) for prompt in asked.prompts]
    params = sampling_params(
        request,
        model,
        max_tokens=0,  # each prompt has its own, see below
        reported=asked.reported,
        preset_dir=Path(settings.preset_dir) if settings.preset_dir is not None else None,
    )
    is_guided = params.guidance_scale != 1.0
    negative = _negative_prompt(request, model) if is_guided else []
    lengths = [_max_tokens(len(prompt), len(negative), request, asked, model) for prompt in prompts]
    timeout_seconds = timeout_of(request, settings)
    resumed = _resumed(request, asked, model)
    _check_resumed_lengths(request, resumed)
    n = asked.num_choices
    for i, prompt in enumerate(prompts):
        longest = max((len(tokens) for tokens in resumed[i * n : (i + 1) * n]), default=0)
        _check_prompt_length(max(len(prompt), len(negative)) + longest, asked, model)
    return [
        GenerationRequest(
            request_id=f"{asked.response_id}-{i}",
            prompt_token_ids=tuple(prompt),
            params=_own_params(params, lengths[i], is_seeded=i == 0 or has_seed(request)),
            num_choices=n,
            priority=request.priority or 0,
            timeout_seconds=timeout_seconds,
            # Like Transformers: without a negative prompt, guidance leads away from no context.
            negative_prompt_token_ids=tuple(negative or prompt[-1:]) if is_guided else (),
            resume_token_ids=resumed[i * n : (i + 1) * n],
            adapter=model.adapter,
            grammar=asked.grammar,
        )
        for i, prompt in enumerate(prompts)
    ]


def timeout_of(request: GenerationFields, settings: ServerSettings) -> float:
    """The request's deadline in seconds from its arrival."""
    longest = settings.max_request_seconds
    if request.timeout_s is not None and request.timeout_s > longest:
        raise InvalidRequestError(
            f"Invalid 'timeout_s': decimal above maximum value. Expected a value <= {longest:g}, "
            f"but got {request.timeout_s:g} instead.",
            param="timeout_s",
            code="decimal_above_max_value",
        )
    return request.timeout_s if request.timeout_s is not None else longest


def _own_params(params: SamplingParams, max_tokens: int, *, is_seeded: bool) -> SamplingParams:
    """A prompt's own length, and noise of its own where the client has not chosen it."""
    own = params if is_seeded else with_new_seed(params)
    return msgspec.structs.replace(own, max_tokens=max_tokens)


def _usable(
    prompt: list[int], request: GenerationFields, param: str, model: ServedModel
) -> list[int]:
    """The prompt cut to `truncation_length`, and never empty: a text may start from nothing."""
    check_token_ids(prompt, model, param)
    if request.truncation_length:
        prompt = prompt[-request.truncation_length :]
    if prompt:
        return prompt
    tokenizer = model.tokenizer
    start = tokenizer.bos_token_id if request.add_bos_token is not False else None
    if start is None:
        start = next(iter(model.info.eos_token_ids), None)
    if start is None:
        raise InvalidRequestError(
            f"Invalid '{param}': it has no tokens, and the model has no token to start from.",
            param=param,
            code="invalid_value",
        )
    return [start]


def _negative_prompt(request: GenerationFields, model: ServedModel) -> list[int]:
    if not request.negative_prompt:
        return []
    return prompt_tokens(
        request.negative_prompt, model, "negative_prompt", add_bos=request.add_bos_token
    )


def _max_tokens(
    num_prompt_tokens: int,
    num_negative_tokens: int,
    request: GenerationFields,
    asked: Asked,
    model: ServedModel,
) -> int:
    """How many tokens a choice may have. Raises where prompt and completion do not fit."""
    longest = model.info.max_model_len
    room = longest - max(num_prompt_tokens, num_negative_tokens)
    wanted = None if request.auto_max_new_tokens else asked.max_tokens
    if room < (1 if wanted is None else wanted):
        param = asked.param if num_prompt_tokens >= num_negative_tokens else "negative_prompt"
        raise _too_long(longest - room, wanted, longest, param)
    if wanted is None:
        default = None if request.auto_max_new_tokens else asked.default_max_tokens
        wanted = room if default is None else min(room, default)
    if request.min_tokens is not None and request.min_tokens > wanted:
        raise InvalidRequestError(
            f"Invalid 'min_tokens': integer above maximum value. Expected a value <= {wanted}, the "
            f"most tokens a choice may have, but got {request.min_tokens} instead.",
            param="min_tokens",
            code="integer_above_max_value",
        )
    return wanted


def _check_prompt_length(num_tokens: int, asked: Asked, model: ServedModel) -> None:
    """Raise where the model takes shorter prompts than its context has room for."""
    longest = model.info.max_prompt_len
    if longest is not None and num_tokens > longest:
        raise ContextLengthError(
            f"This model takes prompts of at most {longest} tokens, but your {asked.param} has "
            f"{num_tokens}, resumed tokens included.",
            param=asked.param,
            details={"n_prompt_tokens": num_tokens, "n_ctx": model.info.max_model_len},
        )


def _too_long(
    num_prompt_tokens: int, wanted: int | None, longest: int, param: str
) -> ContextLengthError:
    asked_for = (
        f"your {param} has {num_prompt_tokens} tokens and leaves no room for a completion"
        if wanted is None
        else f"you requested {num_prompt_tokens + wanted} tokens ({num_prompt_tokens} in your "
        f"{param}, {wanted} for the completion)"
    )
    return ContextLengthError(
        f"This model's maximum context length is {longest} tokens, but {asked_for}.",
        param=param,
        details={"n_prompt_tokens": num_prompt_tokens, "n_ctx": longest},
    )


def _resumed(
    request: GenerationFields, asked: Asked, model: ServedModel
) -> tuple[tuple[int, ...], ...]:
    """The resumed tokens of all choices, or nothing."""
    if request.resume_token_ids is None:
        return ()
    if not model.info.capabilities.resume:
        raise UnsupportedParameterError(
            "Unsupported parameter: 'resume_token_ids'. The loaded model cannot resume.",
            param="resume_token_ids",
        )
    if request.mirostat_mode and not model.info.capabilities.prompt_logprobs:
        raise UnsupportedParameterError(
            "Unsupported parameter: 'mirostat_mode' with 'resume_token_ids'. Its state depends on "
            "past distributions, and the loaded model gives only the newest.",
            param="mirostat_mode",
        )
    _check_count("resume_token_ids", len(request.resume_token_ids), asked)
    for token_ids in request.resume_token_ids:
        check_token_ids(token_ids, model, "resume_token_ids")
    return tuple(tuple(token_ids) for token_ids in request.resume_token_ids)


def _check_resumed_lengths(request: GenerationFields, resumed: tuple[tuple[int, ...], ...]) -> None:
    """One per choice. A length may go beyond the tokens' text: into that of the next token."""
    lengths = request.resume_text_lengths
    if lengths is not None and len(lengths) != len(resumed):
        raise InvalidRequestError(
            "Invalid 'resume_text_lengths': expected one length per list of 'resume_token_ids', "
            f"that is {len(resumed)}, but got {len(lengths)}.",
            param="resume_text_lengths",
            code="invalid_value",
        )


def _check_num_choices(asked: Asked) -> None:
    num_choices = len(asked.prompts) * asked.num_choices
    if num_choices > MAX_CHOICES_IN_ALL:
        raise InvalidRequestError(
            f"The request asks for {num_choices} choices in all; at most {MAX_CHOICES_IN_ALL} "
            "are possible.",
            param=asked.param,
            code="invalid_value",
        )


def _check_count(param: str, count: int, asked: Asked) -> None:
    num_choices = len(asked.prompts) * asked.num_choices
    if count != num_choices:
        raise InvalidRequestError(
            f"Invalid '{param}': expected one list per choice, that is {num_choices}, "
            f"but got {count}.",
            param=param,
            code="invalid_value",
        )
