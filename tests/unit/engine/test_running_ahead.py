"""Steps that are launched before the one before them is read, over a toy device."""

from __future__ import annotations

import random
from typing import Any

import pytest
from msgspec.structs import replace

from tests.helpers.toy_runner import (
    EOS,
    VOCAB_SIZE,
    ToyDevice,
    ToyRunner,
    expected_tokens,
    make_core,
    run_to_end,
)
from tgwui_k8s.contract import GenerationRequest, TokenDelta
from tgwui_k8s.engine.core import EngineCore
from tgwui_k8s.sampling import SamplingParams


def add(core: EngineCore, request_id: str, prompt: list[int], **params: Any) -> SamplingParams:
    """Ask for a generation; returns its parameters."""
    options = {"max_tokens": 10, "ignore_eos": True, "seed": 1, **params}
    asked = SamplingParams(**options)
    core.add_request(
        GenerationRequest(request_id=request_id, prompt_token_ids=tuple(prompt), params=asked)
    )
    return asked


def told(core: EngineCore) -> dict[str, list[TokenDelta]]:
    """All deltas by request, in order, less what depends on who shared a step with whom."""
    deltas: dict[str, list[TokenDelta]] = {}
    while core.has_work:
        for output in core.step():
            deltas.setdefault(output.request_id, []).extend(
                replace(delta, num_cached_tokens=0, queue_seconds=None) for delta in output.deltas
            )
        core.check_integrity()
    return deltas


def test_a_step_is_launched_before_the_last_one_is_read():
    """All the way through: the device is never without work until the end."""
    runner = ToyDevice()
    core = make_core(runner)
    params = add(core, "a", [1, 2, 3], max_tokens=4)
    assert run_to_end(core) == {("a", 0): expected_tokens([1, 2, 3], params)}
    assert runner.events == ["launch", "launch", "read", "launch", "read", "launch", "read", "read"]


def test_a_long_prompt_does_not_pile_up_on_the_device():
    """Chunks without a token are waited for as well: at most two steps are under way."""
    runner = ToyDevice()
    core = make_core(runner, max_num_batched_tokens=8)
    add(core, "a", list(range(1, 33)), max_tokens=1)
    run_to_end(core)
    assert runner.events == ["launch", "launch", "read", "launch", "read", "launch", "read", "read"]


def test_what_is_certain_to_be_the_last_token_costs_no_further_step():
    """`max_tokens` and the context's end are known beforehand; a stop token costs one row."""
    runner = ToyDevice(max_model_len=8)
    core = make_core(runner)
    add(core, "limit", [1, 2], max_tokens=3)
    add(core, "context", [1, 2, 3], max_tokens=100)
    text = run_to_end(core)
    assert [len(text[name, 0]) for name in ("limit", "context")] == [3, 5]
    assert len(runner.batches) == 5

    runner = ToyDevice()
    core = make_core(runner)
    free = expected_tokens([3], SamplingParams(max_tokens=9, seed=1, ignore_eos=True))
    end = next(i for i in range(2, 9) if free[i] not in free[:i])
    add(core, "stop", [3], max_tokens=50, stop_token_ids=(free[end],))
    deltas = told(core)["stop"]
    assert [token for delta in deltas for token in delta.token_ids] == free[: end + 1]
    assert (deltas[-1].finish_reason, deltas[-1].stop_token_id) == ("stop", free[end])
    assert len(runner.batches) == end + 2
    assert core.stats.kv_cache_usage == 0.0
    assert core.stats.generation_tokens == end + 1


@pytest.mark.parametrize(
    "params",
    [
        {"repetition_penalty": 1.2},
        {"dry_multiplier": 1.0},
        {"no_repeat_ngram_size": 2},
        {"mirostat_mode": 2},
        {"prompt_lookup_num_tokens": 4},
        {"prompt_logprobs": 1, "max_tokens": 1},
        {"max_tokens": 0},
    ],
)
def test_who_needs_the_host_between_tokens_gets_it(params):
    """Its steps are read at once, and nobody who shares them loses anything by it."""
    runner = ToyDevice()
    core = make_core(runner, max_num_batched_tokens=64)
    asked = {"needy": add(core, "needy", [4, 5, 6], **params), "beside": add(core, "beside", [7])}
    assert {output.request_id for output in core.step()} == {"needy", "beside"}
    assert runner.events == ["launch"]

    deltas = told(core)
    tokens = [token for delta in deltas["beside"] for token in delta.token_ids]
    assert tokens == expected_tokens([7], asked["beside"])[1:]
    add(core, "later", [9])
    runner.events.clear()
    run_to_end(core)
    assert runner.events[:3] == ["launch", "launch", "read"]


@pytest.mark.parametrize("at", [1, 2, 3, 5])
def test_an_abort_between_launch_and_result_leaves_nothing(at):
    """What the device computes for it is thrown away; the neighbour's text is its own."""
    core = make_core(ToyDevice(), max_num_batched_tokens=8)
    params = add(core, "stays", [1, 2])
    add(core, "goes", list(range(3, 16)), max_tokens=50)
    received: list[int] = []
    for number in range(100):
        if number == at:
            core.abort("goes")
            core.check_integrity()
        if not core.has_work:
            break
        outputs = core.step()
        assert number < at or all(output.request_id == "stays" for output in outputs)
        received += [
            token
            for output in outputs
            if output.request_id == "stays"
            for delta in output.deltas
            for token in delta.token_ids
        ]
    assert received == expected_tokens([1, 2], params)
    assert core.stats.kv_cache_usage == 0.0


def test_a_deadline_between_launch_and_result_ends_the_request():
    """It is told so once, and gets no token after that."""
    now = [0.0]
    core = make_core(ToyDevice(), clock=lambda: now[0])
    core.add_request(
        GenerationRequest(
            request_id="late",
            prompt_token_ids=(1,),
            params=SamplingParams(max_tokens=50, ignore_eos=True),
            timeout_seconds=5.0,
        )
    )
    core.step()
    now[0] = 6.0
    assert [delta.error_code for delta in told(core)["late"]] == ["deadline_exceeded"]
    core.check_integrity()


def test_a_token_that_took_a_second_attempt_is_computed_again():
    """The step under way was made of a token that was void: its row does not count."""
    runner = ToyDevice()
    core = make_core(runner)
    params = add(core, "banned", [1, 2], max_tokens=5, banned_token_ids=tuple(range(VOCAB_SIZE)))
    beside = add(core, "beside", [3, 4], max_tokens=5)
    tokens = run_to_end(core)
    assert tokens["banned", 0] == expected_tokens([1, 2], params)
    assert tokens["beside", 0] == expected_tokens([3, 4], beside)
    assert core.stats.num_preemptions == 5


def test_a_second_attempt_is_made_for_the_position_of_the_first():
    """`min_tokens` forbids the only token that is left: whatever was promised meanwhile."""
    params = {
        "min_tokens": 3,
        "ignore_eos": False,
        "banned_token_ids": tuple(i for i in range(VOCAB_SIZE) if i != EOS),
    }
    core = make_core(ToyDevice())
    asked = add(core, "a", [1, 2], **params)
    expected = expected_tokens([1, 2], asked)
    assert len(expected) == 4
    assert run_to_end(core) == {("a", 0): expected}


def ask_at_random(core: EngineCore, seed: int) -> None:
    """Some requests that differ in everything, on few enough blocks for preemption."""
    source = random.Random(seed)
    for number in range(source.randint(1, 6)):
        options = [
            {"temperature": 0.0},
            {"logprobs": 3},
            {"logprobs": 2, "logprobs_after_sampling": True, "top_k": 5},
            {"top_k": 7, "top_p": 0.8, "min_p": 0.05},
            {"xtc_probability": 0.5, "xtc_threshold": 0.05},
            {"frequency_penalty": 0.5},
            {"logit_bias": {3: 5.0, 4: -3.0}, "min_tokens": 4, "ignore_eos": False},
            {"ignore_eos": False, "dynamic_temperature": True},
        ]
        prompt = [source.randint(1, 4) for _ in range(source.randint(1, 30))]
        params = {"seed": source.randint(0, 9), "max_tokens": source.randint(1, 20)}
        add(core, f"r{number}", prompt, **params, **source.choice(options))


def test_all_that_is_told_is_what_the_plain_loop_tells():
    """Tokens, log probabilities and reasons, delta by delta, with and without running ahead."""
    num_preemptions = 0
    for seed in range(40):
        cores = [
            make_core(runner, max_num_seqs=4, max_num_batched_tokens=12)
            for runner in (ToyRunner(num_blocks=18), ToyDevice(num_blocks=18))
        ]
        for core in cores:
            ask_at_random(core, seed)
        plain, ahead = (told(core) for core in cores)
        assert plain == ahead
        num_preemptions += cores[1].stats.num_preemptions
    assert num_preemptions > 10


def test_a_sampler_that_must_wait_is_refused():
    """A runner that runs ahead needs a sampler that does; the mistake is found at the start."""
    runner = ToyDevice()
    runner.sampler = StubSampler()
    with pytest.raises(TypeError, match="StubSampler"):
        make_core(runner)


class StubSampler:
    """No sampler at all."""
