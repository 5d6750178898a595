"""Guessed tokens: found by looking up the prompt, confirmed by sampling, never seen in the text."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.helpers.toy_runner import EOS, ToyRunner, expected_tokens, make_core, run_to_end
from tgwui_k8s.contract import GenerationRequest
from tgwui_k8s.engine.prompt_lookup import _MAX_READ, NGramIndex, PromptLookup
from tgwui_k8s.sampling import SamplingParams

PROMPT = (3, 1, 4, 1, 5, 9, 2, 6)
REPEATING = (1,)
"""Windows of a model that sees one token only: greedy, it runs in circles."""


def ask(prompt=PROMPT, *, num_choices=1, negative=(), **params) -> GenerationRequest:
    return GenerationRequest(
        request_id="r",
        prompt_token_ids=tuple(prompt),
        params=SamplingParams(**{"max_tokens": 60, "ignore_eos": True, **params}),
        num_choices=num_choices,
        negative_prompt_token_ids=negative,
    )


def run(request, *, max_num_batched_tokens=64, **runner):
    """The tokens of every choice, and the engine that gave them."""
    core = make_core(ToyRunner(**runner), max_num_batched_tokens=max_num_batched_tokens)
    core.add_request(request)
    return run_to_end(core), core


# ------------------------------------------------------------------------------------- guessing


def lookup_of(max_tokens: int, stop: int, num_prompt_tokens: int = 0) -> PromptLookup:
    return PromptLookup(max_tokens, stop, NGramIndex(end=num_prompt_tokens))


def test_what_followed_last_time_is_guessed() -> None:
    """The newest match counts, a longer one before a shorter."""
    text = [1, 2, 3, 7, 7, 2, 3, 8, 8, 2, 3]
    assert lookup_of(2, 99).draft(text, 9) == [8, 8]
    assert lookup_of(2, 99).draft([*text[:-2], 1, 2, 3], 9) == [7, 7]
    assert lookup_of(3, 99).draft([1, 2, 3, 4], 9) == []
    assert lookup_of(3, 99).draft([1], 9) == []


def test_a_run_that_repeats_itself_goes_on() -> None:
    """The draft may reach beyond the text: what it guessed itself follows there."""
    assert lookup_of(8, 99).draft([1, 2, 3, 1, 2, 3], 8) == [1, 2, 3, 1, 2, 3, 1, 2]


def test_limits_are_kept() -> None:
    """Neither more than asked, nor than there is room for, nor up to the text's last token."""
    text = [1, 2, 3, 4, 5, 6, 1, 2]
    assert lookup_of(3, 99).draft(text, 9) == [3, 4, 5]
    assert lookup_of(3, 99).draft(text, 1) == [3]
    assert lookup_of(3, 99).draft(text, -1) == []
    assert lookup_of(3, len(text) + 2).draft(text, 9) == [3]
    assert lookup_of(3, len(text) + 1).draft(text, 9) == []


@settings(max_examples=200, deadline=None, derandomize=True)
@given(
    text=st.lists(st.integers(1, 3), min_size=1, max_size=40),
    num_prompt_tokens=st.integers(0, 30),
    begin=st.integers(1, 40),
)
def test_where_the_prompt_ends_makes_no_difference(text, num_prompt_tokens, begin) -> None:
    """An index of the prompt and one of the answer find what one of the whole text would."""
    whole, parted = lookup_of(4, 99), lookup_of(4, 99, num_prompt_tokens)
    for length in range(begin, len(text) + 1):
        assert parted.draft(text[:length], 9) == whole.draft(text[:length], 9)


def test_choices_read_their_prompt_once_and_only_to_guess() -> None:
    """Sixteen choices of a long prompt do not hold up a step sixteen times."""
    core = make_core(ToyRunner(), max_num_batched_tokens=64)
    core.add_request(ask(prompt_lookup_num_tokens=4, num_choices=16))
    lookups = [sequence.lookup for sequence in core._requests["r"].sequences]
    prompt = [number * number % 1009 for number in range(8)]
    indices = {id(index): index for one in lookups for index in (one._prompt, one._own)}

    def num_indexed() -> int:
        return sum(len(index._stops) for index in indices.values())

    for one in lookups:
        one.draft([*prompt, 1, 2], 0)
    assert num_indexed() == 0
    for one in lookups:
        one.draft([*prompt, 1, 2], 4)
    assert num_indexed() < 2 * len(prompt) + 16 * 4


def test_a_very_long_prompt_is_read_in_parts() -> None:
    """What was read last counts once it is reached."""
    lookup = lookup_of(1, 1 << 20, 2 * _MAX_READ + 9)
    text = [1, 2, 3, *range(10, 2 * _MAX_READ + 10), 1, 2, 4, 0, 1, 2]
    drafts = [lookup.draft(text, 9) for _ in range(4)]
    assert drafts == [[3], [3], [4], [4]]


def test_wrong_guesses_make_the_next_ones_short() -> None:
    """After a wrong guess one token is tried, then three, then seven while they are right."""
    lookup = lookup_of(16, 99)
    text = [1, 2] * 8
    assert len(lookup.draft(text, 99)) == 16
    assert not lookup.confirm(5)
    assert not lookup.confirm(2)  # dropped with the first
    for length in (1, 3, 7):
        draft = lookup.draft(text, 99)
        assert len(draft) == length
        assert all(lookup.confirm(token) for token in draft)
        text += draft
    assert not lookup.confirm(text[-2])


# --------------------------------------------------------------------------------- in the engine


@pytest.mark.parametrize("windows", [REPEATING, (2,), (None,)])
@pytest.mark.parametrize("temperature", [0.0, 0.3, 1.0])
def test_the_text_is_the_same_in_fewer_steps(windows, temperature) -> None:
    """Whether guesses come true often, sometimes or never, each choice says what it would say."""
    request = ask(num_choices=2, prompt_lookup_num_tokens=8, temperature=temperature, seed=7)
    tokens, core = run(request, windows=windows)
    for choice in (0, 1):
        expected = expected_tokens(PROMPT, request.params, choice=choice, windows=windows)
        assert tokens["r", choice] == expected
    if windows == REPEATING and temperature == 0.0:
        assert core.num_steps < 30
        assert core.stats.num_accepted_tokens > 60
    assert core.stats.num_accepted_tokens <= core.stats.num_draft_tokens
    assert core.stats.generation_tokens == 120
    assert core.stats.kv_cache_usage == 0.0


@settings(max_examples=80, deadline=None, derandomize=True)
@given(
    params=st.fixed_dictionaries(
        {
            "temperature": st.sampled_from([0.0, 0.5, 1.0]),
            "seed": st.integers(0, 20),
            "max_tokens": st.integers(1, 40),
            "prompt_lookup_num_tokens": st.integers(1, 16),
            "ignore_eos": st.booleans(),
            "min_tokens": st.integers(0, 3),
            "stop_token_ids": st.sampled_from([(), (5,), (1, 2)]),
            "repetition_penalty": st.sampled_from([1.0, 1.3]),
            "presence_penalty": st.sampled_from([0.0, 1.0]),
            "no_repeat_ngram_size": st.sampled_from([0, 4]),
            "mirostat_mode": st.sampled_from([0, 2]),
            "top_k": st.sampled_from([0, 3]),
        }
    ),
    prompt=st.lists(st.integers(1, 3), min_size=1, max_size=20),
    windows=st.sampled_from([(1,), (2,), (None,)]),
    budget=st.integers(9, 40),
    num_blocks=st.integers(20, 40),
)
def test_nothing_a_request_can_ask_tells_the_difference(
    params, prompt, windows, budget, num_blocks
) -> None:
    """Samplers with state, stop tokens and limits see one token after the other, as ever."""
    request = ask(prompt, **params)
    tokens, core = run(
        request, windows=windows, num_blocks=num_blocks, max_num_batched_tokens=budget
    )
    assert tokens["r", 0] == expected_tokens(prompt, request.params, windows=windows)
    assert core.stats.kv_cache_usage == 0.0


def deltas_of(request) -> list:
    core = make_core(ToyRunner(windows=REPEATING), max_num_batched_tokens=64)
    core.add_request(request)
    deltas = []
    while core.has_work:
        deltas += [delta for output in core.step() for delta in output.deltas]
    return deltas


def test_log_probabilities_are_reported_for_guessed_tokens_too() -> None:
    """Token by token the same deltas, log probabilities and finish reason included."""
    plain = deltas_of(ask(logprobs=3, temperature=0.0, stop_token_ids=(EOS,)))
    guessed = deltas_of(
        ask(logprobs=3, temperature=0.0, stop_token_ids=(EOS,), prompt_lookup_num_tokens=8)
    )
    fields = ("token_ids", "logprobs", "finish_reason", "stop_token_id")
    for name in fields:
        assert [getattr(d, name) for d in guessed] == [getattr(d, name) for d in plain]


def test_a_guess_preempts_nobody() -> None:
    """With hardly a free block left, guesses stay within what there is."""
    core = make_core(ToyRunner(windows=REPEATING, num_blocks=20), max_num_batched_tokens=64)
    for name in "ab":
        request = ask(prompt_lookup_num_tokens=16, temperature=0.0, max_tokens=30)
        core.add_request(
            GenerationRequest(request_id=name, prompt_token_ids=PROMPT, params=request.params)
        )
    tokens = run_to_end(core)
    assert (
        tokens["a", 0]
        == tokens["b", 0]
        == expected_tokens(PROMPT, request.params, windows=REPEATING)
    )
    assert core.stats.num_preemptions == 0
    assert core.stats.num_accepted_tokens > 0


@pytest.mark.parametrize(
    ("request_", "runner"),
    [
        (ask(prompt_lookup_num_tokens=8, negative=(1, 2), guidance_scale=1.5), {}),
        (ask(prompt_lookup_num_tokens=8), {"chunked_prefill": False}),
        (ask(), {}),
    ],
)
def test_where_it_cannot_be_done_nothing_is_guessed(request_, runner) -> None:
    """Under guidance, on a model that computes prompts whole, and where nobody asked for it."""
    _, core = run(request_, windows=REPEATING, **runner)
    assert core.stats.num_draft_tokens == 0


def test_a_step_computes_no_more_logits_than_there_is_memory_for() -> None:
    """Sixty-four sequences that all guess share 256 rows of logits."""
    runner = ToyRunner(windows=(1,), num_blocks=800)
    core = make_core(runner, max_num_seqs=64, max_num_batched_tokens=2000)
    for index in range(64):
        core.add_request(
            GenerationRequest(
                request_id=str(index),
                prompt_token_ids=(1, 2, 3, index % 40),
                params=SamplingParams(
                    max_tokens=40, temperature=0.0, ignore_eos=True, prompt_lookup_num_tokens=16
                ),
            )
        )
    run_to_end(core)
    largest = max(batch.num_logits for batch in runner.batches)
    assert 200 < largest <= 256
