"""A request's sequences, as they are before their first step."""

from __future__ import annotations

from tgwui_k8s.contract import GenerationRequest, ModelRunner, Sampler, SamplingRow
from tgwui_k8s.engine.launching import Launcher
from tgwui_k8s.engine.prompt_lookup import NGramIndex, PromptLookup
from tgwui_k8s.engine.request import Lane, Request, Sequence, Status


def make_sequences(
    request: Request, runner: ModelRunner, sampler: Sampler, launcher: Launcher
) -> list[Sequence]:
    """One per choice, each where its resumed tokens lead; the sampler replays them if it must."""
    source = request.source
    prompts = [source.prompt_token_ids]
    if source.negative_prompt_token_ids:
        prompts.append(source.negative_prompt_token_ids)
    prompt_index = NGramIndex(end=len(source.prompt_token_ids))
    sequences = []
    for index in range(source.num_choices):
        resumed = request.resumed_token_ids(index)
        replays = bool(resumed) and sampler.needs_replay(source.params)
        lookup = _make_lookup(source, runner, prompt_index)
        num_groups = len(runner.layout.groups)
        sequences.append(
            Sequence(
                request,
                index,
                tuple(Lane([*prompt, *resumed], num_groups, request.adapter) for prompt in prompts),
                SamplingRow(
                    params=source.params,
                    eos_token_ids=runner.info.eos_token_ids,
                    prompt_token_ids=source.prompt_token_ids,
                    output_token_ids=[] if replays else list(resumed),
                    choice=index,
                ),
                Status.BLOCKED,
                to_replay=resumed if replays else (),
                lookup=lookup,
                can_run_ahead=_needs_no_host(source, lookup)
                and launcher.can_run_ahead(source.params),
            )
        )
    return sequences


def _make_lookup(
    source: GenerationRequest, runner: ModelRunner, prompt_index: NGramIndex
) -> PromptLookup | None:
    """What guesses the request's tokens; under guidance nothing does."""
    num_tokens = source.params.prompt_lookup_num_tokens
    can_guess = runner.layout.chunked_prefill and not source.negative_prompt_token_ids
    if num_tokens == 0 or not can_guess:
        return None
    longest = len(source.prompt_token_ids) + source.params.max_tokens
    return PromptLookup(num_tokens, min(longest, runner.info.max_model_len), prompt_index)


def _needs_no_host(source: GenerationRequest, lookup: PromptLookup | None) -> bool:
    """True where nothing but the sampler has to act between two tokens."""
    return not source.grammar and lookup is None and source.params.max_tokens > 0
