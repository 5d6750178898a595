"""Tests of engine/core.py and engine/scheduler.py over a toy model."""

from __future__ import annotations

import gc

import numpy as np
import pytest

from tests.helpers.toy_runner import (
    EOS,
    ToyRunner,
    expected_tokens,
    make_core,
    run_to_end,
)
from tgwui_k8s.contract import Batch, GenerationRequest
from tgwui_k8s.engine.request import Lane, Request, Sequence
from tgwui_k8s.errors import IntegrityError, OverloadedError
from tgwui_k8s.sampling import SamplingParams


def greedy(max_tokens: int = 10, **kwargs: object) -> SamplingParams:
    return SamplingParams(max_tokens=max_tokens, temperature=0.0, ignore_eos=True, **kwargs)


def drawn(max_tokens: int = 10, seed: int = 1, **kwargs: object) -> SamplingParams:
    return SamplingParams(max_tokens=max_tokens, seed=seed, ignore_eos=True, **kwargs)


def make_request(
    request_id: str, prompt: list[int], params: SamplingParams, **kwargs: object
) -> GenerationRequest:
    return GenerationRequest(
        request_id=request_id, prompt_token_ids=tuple(prompt), params=params, **kwargs
    )


def deltas_of(core, max_steps: int = 200):
    """All deltas until the engine is idle."""
    deltas = []
    for _ in range(max_steps):
        if not core.has_work:
            return deltas
        deltas += [delta for output in core.step() for delta in output.deltas]
    raise AssertionError("the engine does not come to an end")


def test_one_request_gives_what_the_model_says():
    """A prompt longer than the budget is chunked, and the text is that of the bare model."""
    core = make_core(ToyRunner(), max_num_batched_tokens=8)
    prompt = list(range(1, 30))
    core.add_request(make_request("a", prompt, greedy()))
    assert run_to_end(core) == {("a", 0): expected_tokens(prompt, greedy())}


def test_every_step_executes_one_batch():
    """One forward per step, for prefills and decodes together."""
    runner = ToyRunner()
    core = make_core(runner)
    for name in "abc":
        core.add_request(make_request(name, [ord(name), 1, 2], drawn()))
    run_to_end(core)
    assert len(runner.batches) == core.num_steps


def test_decodes_go_first_and_the_budget_is_kept():
    """A long prompt never takes the place of a running stream's next token."""
    runner = ToyRunner()
    core = make_core(runner, max_num_seqs=4, max_num_batched_tokens=6)
    core.add_request(make_request("short", [1, 2], greedy(30)))
    core.step()
    core.add_request(make_request("long", list(range(60)), greedy(2)))
    run_to_end(core)
    for batch in runner.batches:
        assert batch.num_tokens <= 6
    mixed = [b for b in runner.batches if len(b.sequences) == 2]
    assert len(mixed) > 10
    assert all(len(batch.sequences[0].token_ids) == 1 for batch in mixed)


def test_first_come_first_served_within_a_priority():
    """A lower priority number overtakes the queue; equals go in order of arrival."""
    core = make_core(ToyRunner(), max_num_seqs=1)
    for name, priority in [("first", 0), ("second", 0), ("urgent", -1)]:
        core.add_request(make_request(name, [1, 2, 3], greedy(2), priority=priority))
    finished = [
        output.request_id
        for _ in range(20)
        for output in core.step()
        for delta in output.deltas
        if delta.finish_reason
    ]
    assert finished == ["urgent", "first", "second"]


def test_preemption_does_not_change_the_text():
    """With too few blocks for all, some are computed twice and say the same."""
    core = make_core(ToyRunner(num_blocks=16), max_num_seqs=4)
    prompts = {name: [ord(name)] * 9 for name in "abcd"}
    for name, prompt in prompts.items():
        core.add_request(make_request(name, prompt, drawn(30)))
    tokens = run_to_end(core)
    assert core.stats.num_preemptions > 0
    for name, prompt in prompts.items():
        assert tokens[name, 0] == expected_tokens(prompt, drawn(30))


def test_a_prompt_starts_only_when_it_fits_beside_those_under_way():
    """Two prompts that do not fit together run one after the other, without preemption."""
    core = make_core(ToyRunner(num_blocks=16), max_num_batched_tokens=8)
    for name in "ab":
        core.add_request(make_request(name, [ord(name)] * 40, greedy(2)))
    run_to_end(core)
    assert core.stats.num_preemptions == 0


def test_a_repeated_prompt_comes_from_the_cache():
    """The second request computes only its tail, says so, and gives the same text."""
    core = make_core(ToyRunner())
    prompt = list(range(1, 14))
    core.add_request(make_request("a", prompt, greedy()))
    first = run_to_end(core)["a", 0]
    core.add_request(make_request("b", prompt, greedy()))
    deltas = deltas_of(core)
    assert deltas[0].num_cached_tokens == 12
    assert [token for delta in deltas for token in delta.token_ids] == first
    assert core.stats.prefix_cache_hits == 12


def test_choices_share_the_blocks_of_their_prompt():
    """n = 3: the prompt is computed once, each choice draws its own text."""
    runner = ToyRunner()
    core = make_core(runner, max_num_batched_tokens=64)
    prompt = list(range(1, 18))
    core.add_request(make_request("a", prompt, drawn(6), num_choices=3))
    tokens = run_to_end(core)
    for choice in range(3):
        assert tokens["a", choice] == expected_tokens(prompt, drawn(6), choice=choice)
    assert tokens["a", 0] != tokens["a", 1]
    assert max(len(batch.sequences) for batch in runner.batches) == 3
    num_prefilled = sum(len(s.token_ids) for b in runner.batches for s in b.sequences)
    assert num_prefilled < 17 + 2 * 4 + 3 * 6


def test_aborting_the_first_choice_lets_the_others_go_on():
    """The choice that computes the shared prompt may leave before it is done."""
    core = make_core(ToyRunner(), max_num_batched_tokens=8)
    prompt = list(range(1, 30))
    core.add_request(make_request("a", prompt, drawn(5), num_choices=2))
    core.step()
    core.abort("a", 0)
    assert run_to_end(core) == {("a", 1): expected_tokens(prompt, drawn(5), choice=1)}


@pytest.mark.parametrize("num_steps", [0, 1, 3, 6])
def test_abort_frees_everything_in_any_state(num_steps):
    """Waiting, in the middle of its prompt or decoding: an aborted request leaves no trace."""
    core = make_core(ToyRunner(), max_num_batched_tokens=8)
    core.add_request(make_request("a", list(range(1, 30)), greedy(50)))
    for _ in range(num_steps):
        core.step()
    core.abort("a")
    core.abort("unknown")
    assert not core.has_work
    assert core.step() == []
    core.check_integrity()
    assert core.stats.kv_cache_usage == 0.0
    assert core.stats.num_requests_running == core.stats.num_requests_waiting == 0


def test_requests_that_leave_behind_better_priorities_leave_the_queue():
    """Nobody ever reaches them there, and they would pile up for as long as others come first."""
    core = make_core(ToyRunner(), max_num_seqs=1)
    for name in ("runs", "waits"):
        core.add_request(make_request(name, [1], greedy(3)))
    core.step()
    for number in range(100):
        core.add_request(make_request(str(number), [1], greedy(3), priority=5, num_choices=2))
        core.abort(str(number), 0)
        core.abort(str(number))
    assert len(core.scheduler.waiting) == 1
    assert set(run_to_end(core)) == {("runs", 0), ("waits", 0)}


def test_a_full_queue_refuses():
    """The queue is bounded; what runs does not count."""
    core = make_core(ToyRunner(), max_num_seqs=1, max_waiting_requests=1)
    core.add_request(make_request("a", [1], greedy(5)))
    core.step()
    core.add_request(make_request("b", [1], greedy(5)))
    with pytest.raises(OverloadedError):
        core.add_request(make_request("c", [1], greedy(5)))
    assert core.stats.num_requests_running == 1
    assert core.stats.num_requests_waiting == 1


def test_a_request_past_its_deadline_ends_with_an_error():
    """Waiting or running, it is told so and its blocks are free."""
    now = [0.0]
    core = make_core(ToyRunner(), clock=lambda: now[0], max_num_seqs=1)
    core.add_request(make_request("runs", [1], greedy(50), timeout_seconds=5.0))
    core.step()
    core.add_request(make_request("waits", [1], greedy(50), timeout_seconds=5.0))
    now[0] = 6.0
    outputs = core.step()
    assert {output.request_id for output in outputs} == {"runs", "waits"}
    for output in outputs:
        assert output.deltas[-1].finish_reason == "error"
        assert output.deltas[-1].error_code == "deadline_exceeded"
    assert not core.has_work
    core.check_integrity()


def test_nothing_of_ended_requests_waits_for_the_garbage_collector():
    """Which runs so seldom in an engine that its memory would rise for an hour."""
    core = make_core(ToyRunner())

    def serve(name: str) -> None:
        core.add_request(make_request(f"{name} ends", [1, 2], drawn(5), num_choices=2))
        core.add_request(make_request(f"{name} leaves", [3], greedy(50)))
        core.step()
        core.abort(f"{name} leaves")
        run_to_end(core)

    # Only the engine's own objects: other threads of the test's process make garbage, too.
    kinds = (Request, Sequence, Lane)
    gc.collect()
    before = {id(thing) for thing in gc.get_objects() if type(thing) in kinds}
    gc.disable()
    try:
        serve("only")
        left = [o for o in gc.get_objects() if type(o) in kinds and id(o) not in before]
    finally:
        gc.enable()
    assert left == []


def test_the_deadline_of_an_ended_request_is_forgotten():
    """It would stay in the queue for the ten minutes that a request may take by default."""
    core = make_core(ToyRunner())
    for name in ("first", "second"):
        core.add_request(make_request(name, [1, 2], greedy(3), timeout_seconds=600.0))
    core.abort("first")
    run_to_end(core)
    core.add_request(make_request("third", [1, 2], greedy(3), timeout_seconds=600.0))
    core.step()
    assert [name for _, name in core._deadlines] == ["third"]


def test_end_of_sequence_and_limits_give_their_reason():
    """EOS is "stop" even as the last token allowed; limits are "length"."""
    for seed in range(200):
        params = SamplingParams(max_tokens=8, seed=seed)
        tokens = expected_tokens([5, 6], params)
        core = make_core(ToyRunner())
        core.add_request(make_request("a", [5, 6], params))
        last = deltas_of(core)[-1]
        assert last.finish_reason == ("stop" if tokens[-1] == EOS else "length")
        assert last.stop_token_id == (EOS if tokens[-1] == EOS else None)
        if tokens[-1] == EOS and len(tokens) == 8:
            return
    raise AssertionError("no seed ends exactly at the limit: the test shows nothing")


def test_the_context_ends_a_sequence():
    """At max_model_len the reason is "length"."""
    core = make_core(ToyRunner(max_model_len=12))
    core.add_request(make_request("a", [1] * 8, greedy(100)))
    deltas = deltas_of(core)
    assert sum(len(delta.token_ids) for delta in deltas) == 4
    assert deltas[-1].finish_reason == "length"


def test_stop_tokens_and_min_tokens():
    """A stop token ends the choice, but not before min_tokens."""
    free = expected_tokens([3], greedy(12))
    stop = free[4]
    core = make_core(ToyRunner())
    core.add_request(make_request("a", [3], greedy(12, stop_token_ids=(stop,))))
    last = deltas_of(core)[-1]
    assert (last.finish_reason, last.stop_token_id) == ("stop", stop)
    params = greedy(12, stop_token_ids=(stop,), min_tokens=8)
    core.add_request(make_request("b", [3], params))
    assert sum(len(d.token_ids) for d in deltas_of(core)) >= 8


def test_a_resumed_generation_goes_on_exactly():
    """Cut anywhere, the rest is what it would have been; the resumed tokens are not sent again."""
    params = drawn(12, seed=7, repetition_penalty=1.3)
    whole = expected_tokens([4, 5], params)
    for cut in range(13):
        core = make_core(ToyRunner())
        core.add_request(make_request("a", [4, 5], params, resume_token_ids=(tuple(whole[:cut]),)))
        deltas = deltas_of(core)
        assert [t for d in deltas for t in d.token_ids] == whole[cut:]
        assert deltas[-1].finish_reason == "length"


@pytest.mark.parametrize("mirostat_mode", [0, 2])
def test_what_fits_from_its_start_fits_when_resumed(mirostat_mode):
    """Resumed tokens are part of max_tokens, not more of it: replayed by the sampler or not."""
    params = greedy(24, mirostat_mode=mirostat_mode)
    whole = expected_tokens([1] * 8, params, max_model_len=32)
    core = make_core(ToyRunner(num_blocks=8, block_size=4, max_model_len=32))
    resumed = (tuple(whole[:5]),)
    core.add_request(make_request("a", [1] * 8, params, resume_token_ids=resumed))
    assert run_to_end(core) == {("a", 0): whole[5:]}


def test_a_resumed_mirostat_generation_replays_its_state():
    """Mirostat's mu depends on past distributions: they are computed again."""
    params = drawn(14, seed=3, mirostat_mode=2, mirostat_tau=2.0, mirostat_eta=0.5)
    whole = expected_tokens([4, 5, 6], params)
    assert whole != expected_tokens([4, 5, 6], drawn(14, seed=3))
    for cut in (0, 1, 6, 13):
        core = make_core(ToyRunner(), max_num_batched_tokens=8)
        resumed = (tuple(whole[:cut]),)
        core.add_request(make_request("a", [4, 5, 6], params, resume_token_ids=resumed))
        assert run_to_end(core)["a", 0] == whole[cut:]


def test_guidance_runs_two_lanes_in_step():
    """The negative prompt is computed beside the prompt, chunked or not, and changes the text."""
    prompt, negative = list(range(1, 21)), [7, 8, 9]
    params = greedy(8, guidance_scale=2.0)
    expected = expected_tokens(prompt, params, negative_prompt=negative)
    assert expected != expected_tokens(prompt, greedy(8))
    for budget in (8, 9, 64):
        core = make_core(ToyRunner(), max_num_batched_tokens=budget)
        core.add_request(make_request("a", prompt, params, negative_prompt_token_ids=(7, 8, 9)))
        assert run_to_end(core)["a", 0] == expected


def test_prompt_logprobs_cover_the_prompt_once():
    """All prompt tokens but the first, chunked or cached or preempted, exactly once."""
    prompt = list(range(1, 26))
    params = SamplingParams(max_tokens=1, temperature=0.0, prompt_logprobs=2)
    core = make_core(ToyRunner(), max_num_batched_tokens=8)
    core.add_request(make_request("warm", prompt, greedy(1)))
    run_to_end(core)
    core.add_request(make_request("a", prompt, params))
    first = deltas_of(core)[0]
    assert [entry.token_id for entry in first.prompt_logprobs] == prompt[1:]
    assert first.num_cached_tokens == 0


def test_max_tokens_zero_only_scores_the_prompt():
    """Every choice ends with "length" and no token."""
    params = SamplingParams(max_tokens=0, prompt_logprobs=1)
    core = make_core(ToyRunner())
    core.add_request(make_request("a", [1, 2, 3], params, num_choices=2))
    deltas = deltas_of(core)
    assert [(d.index, d.token_ids, d.finish_reason) for d in deltas] == [
        (0, (), "length"),
        (1, (), "length"),
    ]
    assert len(deltas[0].prompt_logprobs) == 2


def test_what_can_never_fit_fails_alone():
    """A request beyond the whole KV cache gets an error; its neighbour does not notice."""
    core = make_core(ToyRunner(num_blocks=8))
    core.add_request(make_request("big", [1] * 20, greedy(20)))
    core.add_request(make_request("small", [1, 2], greedy(4)))
    outputs = core.step()
    failed = [d for o in outputs if o.request_id == "big" for d in o.deltas]
    assert failed[0].error_code == "context_length_exceeded"
    assert run_to_end(core)["small", 0][-1:] == expected_tokens([1, 2], greedy(4))[-1:]


@pytest.mark.parametrize("windows", [(8,), (None, 8), (None, 4, 12)])
def test_sliding_windows_keep_only_what_they_need(windows):
    """Windowed groups need few blocks, and the text is that of the full computation."""
    core = make_core(ToyRunner(windows=windows, num_blocks=40), max_num_batched_tokens=8)
    prompts = {name: [ord(name)] * 30 for name in "abc"}
    for name, prompt in prompts.items():
        core.add_request(make_request(name, prompt, drawn(40)))
    tokens = run_to_end(core)
    for name, prompt in prompts.items():
        assert tokens[name, 0] == expected_tokens(prompt, drawn(40), windows=windows)


def test_a_runner_with_rows_gets_whole_prompts_and_full_decodes():
    """Neuron's rules: no chunks, no mixed batches, every live row in every decode."""
    runner = ToyRunner(
        num_blocks=4,
        block_size=64,
        max_model_len=64,
        prefix_caching=False,
        chunked_prefill=False,
        mixed_batches=False,
    )
    core = make_core(runner, max_num_seqs=4, max_num_batched_tokens=16)
    prompts = {name: [ord(name)] * (5 + 9 * index) for index, name in enumerate("abcdef")}
    for name, prompt in prompts.items():
        core.add_request(make_request(name, prompt, drawn(9)))
    tokens = run_to_end(core)
    for name, prompt in prompts.items():
        assert tokens[name, 0] == expected_tokens(prompt, drawn(9), max_model_len=64)
    live: set[int] = set()
    for batch in runner.batches:
        starts = {scheduled.start for scheduled in batch.sequences}
        if 0 in starts:
            assert starts == {0}, "a prefill batch holds only whole prompts"
            live |= {scheduled.row for scheduled in batch.sequences}
        else:
            assert {scheduled.row for scheduled in batch.sequences} <= live


def test_a_row_without_valid_probabilities_fails_alone():
    """NaN logits end that request with an error and no other."""
    runner = ToyRunner()
    execute = runner.execute

    def broken(batch):
        logits = execute(batch)
        if batch.sequences and batch.sequences[0].num_logits:
            logits[0] = float("nan")
        return logits

    core = make_core(runner)
    core.add_request(make_request("a", [1, 2], greedy(4)))
    core.add_request(make_request("b", [3, 4], greedy(4)))
    runner.execute = broken
    core.step()
    runner.execute = execute
    tokens = run_to_end(core)
    assert ("a", 0) not in tokens
    assert tokens["b", 0][-1] == expected_tokens([3, 4], greedy(4))[-1]


def test_nobody_shares_the_prefix_of_a_sequence_of_nan():
    """Its blocks may hold NaN as well: whoever says the same next computes it anew."""
    runner = ToyRunner()
    execute = runner.execute
    core = make_core(runner)
    prompt = list(range(1, 14))
    runner.execute = lambda batch: execute(batch) * float("nan")
    core.add_request(make_request("a", prompt, greedy(4)))
    assert deltas_of(core)[-1].error_code == "internal_error"
    runner.execute = execute
    core.add_request(make_request("b", prompt, greedy(4)))
    deltas = deltas_of(core)
    assert deltas[0].num_cached_tokens == 0
    assert [t for d in deltas for t in d.token_ids] == expected_tokens(prompt, greedy(4))
    core.check_integrity()


def test_check_integrity_reports_a_lost_row():
    """A row that is neither free nor held is a leak."""
    core = make_core(ToyRunner())
    core.scheduler._free_rows.pop()
    with pytest.raises(IntegrityError, match="rows"):
        core.check_integrity()


def test_first_step_is_no_time_in_the_queue():
    """A request waits until the step that computes its prompt begins, not until that has ended."""
    now = [100.0]

    class SlowRunner(ToyRunner):
        def execute(self, batch: Batch) -> np.ndarray:
            now[0] += 5.0
            return super().execute(batch)

    core = make_core(SlowRunner(), clock=lambda: now[0])
    core.add_request(make_request("a", [1, 2], greedy(1)))
    now[0] += 2.0
    assert deltas_of(core)[0].queue_seconds == 2.0
