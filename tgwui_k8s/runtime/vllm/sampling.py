"""Our sampling parameters in vLLM's words, and its log probabilities in ours.

What vLLM has no word for stands in `UNSUPPORTED`: the API refuses it before it gets here.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from tgwui_k8s.contract import GenerationRequest, TopLogprobs
from tgwui_k8s.sampling import SamplingParams

UNSUPPORTED = (
    *("prompt_lookup_num_tokens", "dynamic_temperature", "smoothing_factor", "typical_p", "tfs"),
    *("top_a", "epsilon_cutoff", "eta_cutoff", "top_n_sigma", "xtc_probability", "mirostat_mode"),
    *("repetition_penalty_range", "encoder_repetition_penalty", "no_repeat_ngram_size"),
    *("dry_multiplier", "temperature_last", "sampler_priority", "guidance_scale"),
    "logprobs_after_sampling",
)
"""Fields of `SamplingParams` that must keep their defaults."""

IRRELEVANT = frozenset(
    {
        *("dynatemp_low", "dynatemp_high", "dynatemp_exponent", "smoothing_curve"),
        *("xtc_threshold", "mirostat_tau", "mirostat_eta"),
        *("dry_allowed_length", "dry_base", "dry_sequence_breakers"),
    }
)
"""Details of what is unsupported: without effect on their own."""

_BAN = -100.0
"""vLLM's least bias: enough that the token is never chosen beside any other."""
_SEEDS = 2**63


def to_vllm(
    request: GenerationRequest, choice: int, eos_token_ids: Sequence[int]
) -> dict[str, Any]:
    """Keyword arguments of vLLM's `SamplingParams` for one choice of a request.

    Ends of sequences are stop tokens here: which they are is our model's list, not vLLM's.
    """
    params: SamplingParams = request.params
    ends = () if params.ignore_eos or params.ban_eos_token else tuple(eos_token_ids)
    banned = params.banned_token_ids + (tuple(eos_token_ids) if params.ban_eos_token else ())
    bias = {**params.logit_bias, **dict.fromkeys(banned, _BAN)}
    return {
        "max_tokens": params.max_tokens,
        "min_tokens": params.min_tokens,
        "stop_token_ids": sorted({*params.stop_token_ids, *ends}),
        "ignore_eos": True,
        "seed": (params.seed + choice) % _SEEDS,
        "temperature": params.temperature,
        "top_p": params.top_p,
        "top_k": params.top_k,
        "min_p": params.min_p,
        "presence_penalty": params.presence_penalty,
        "frequency_penalty": params.frequency_penalty,
        "repetition_penalty": params.repetition_penalty,
        "logit_bias": bias or None,
        "logprobs": params.logprobs,
        "prompt_logprobs": params.prompt_logprobs if choice == 0 else None,
        "detokenize": False,
    }


def top_logprobs(token_id: int, found: Mapping[int, Any], num_top: int) -> TopLogprobs:
    """vLLM's log probabilities at one position: of the token, and of the `num_top` likeliest."""
    own = found[token_id]
    ranked = sorted(found.items(), key=lambda item: int(item[1].rank))
    listed = [item for item in ranked if item[1].rank <= num_top]
    if token_id not in dict(listed):
        listed.append((token_id, own))
    return TopLogprobs(
        token_id=token_id,
        logprob=float(own.logprob),
        rank=int(own.rank),
        token_ids=tuple(token for token, _ in listed),
        logprobs=tuple(float(item.logprob) for _, item in listed),
    )
