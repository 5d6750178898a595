"""Random lives of an engine: whatever happens, nothing leaks and every text is its own."""

from __future__ import annotations

import random
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.helpers.toy_runner import (
    VOCAB_SIZE,
    ToyDevice,
    ToyRunner,
    expected_tokens,
    make_core,
)
from tgwui_k8s.contract import GenerationRequest
from tgwui_k8s.sampling import SamplingParams

KINDS = ["plain", "open", "guided", "scored", "resumed", "guessed", "penalised", "banned"]
REQUESTS = st.tuples(
    st.lists(st.integers(0, 3), min_size=1, max_size=40),  # few tokens: many shared prefixes
    st.integers(1, 20),  # max_tokens
    st.integers(0, 5),  # seed
    st.integers(1, 3),  # choices
    st.integers(-1, 1),  # priority
    st.sampled_from(KINDS),
)
ACTIONS = st.one_of(
    st.tuples(st.just("add"), REQUESTS),
    st.tuples(st.just("step"), st.integers(1, 4)),
    st.tuples(st.just("abort"), st.integers(0, 50)),
    st.tuples(st.just("abort_choice"), st.integers(0, 50)),
)
ENGINES = st.fixed_dictionaries(
    {
        "num_blocks": st.integers(8, 60),
        # A model that sees one token repeats itself, so guesses at what it says come true.
        "windows": st.sampled_from([(None,), (8,), (1,), (None, 8), (None, 4, 16)]),
        "max_num_seqs": st.integers(2, 6),
        "max_num_batched_tokens": st.integers(4, 40),
        "prefix_caching": st.booleans(),
        "mixed_batches": st.booleans(),
        # A device: the engine launches a step before it has read the one before.
        "runs_ahead": st.booleans(),
    }
)


def make_request(name: str, source: tuple, windows: tuple) -> tuple[GenerationRequest, list]:
    """The request, and the tokens each of its choices must still give."""
    prompt, max_tokens, seed, num_choices, priority, kind = source
    params = SamplingParams(
        max_tokens=max_tokens,
        seed=seed,
        ignore_eos=kind != "open",
        min_tokens=min(seed, max_tokens) if kind == "open" else 0,
        repetition_penalty=1.3 if kind == "penalised" else 1.0,
        # Then no token can be chosen as asked, and each is a second choice.
        banned_token_ids=tuple(range(VOCAB_SIZE)) if kind == "banned" else (),
        guidance_scale=1.5 if kind == "guided" else 1.0,
        prompt_logprobs=1 if kind == "scored" else None,
        prompt_lookup_num_tokens=6 if kind == "guessed" else 0,
        temperature=seed % 2 if kind == "guessed" else 1.0,
    )
    negative = (1, 2, 3) if kind == "guided" else ()
    texts = [
        expected_tokens(prompt, params, choice=choice, windows=windows, negative_prompt=negative)
        for choice in range(num_choices)
    ]
    resumed: tuple = ()
    if kind == "resumed":
        resumed = tuple(tuple(text[: seed % len(text)]) for text in texts)
        texts = [text[len(done) :] for text, done in zip(texts, resumed, strict=True)]
    request = GenerationRequest(
        request_id=name,
        prompt_token_ids=tuple(prompt),
        params=params,
        num_choices=num_choices,
        priority=priority,
        negative_prompt_token_ids=negative,
        resume_token_ids=resumed,
    )
    return request, texts


class Life:
    """An engine, what was asked of it, and what it answered."""

    def __init__(self, limits: dict) -> None:
        self.windows = limits["windows"]
        self.runner = (ToyDevice if limits["runs_ahead"] else ToyRunner)(
            num_blocks=limits["num_blocks"],
            windows=self.windows,
            prefix_caching=limits["prefix_caching"],
            mixed_batches=limits["mixed_batches"],
        )
        self.core = make_core(
            self.runner,
            max_num_seqs=limits["max_num_seqs"],
            max_num_batched_tokens=limits["max_num_batched_tokens"],
        )
        self.names: list[str] = []
        self.expected: dict[tuple[str, int], list[int]] = {}
        self.received: dict[tuple[str, int], list[int]] = {}
        self.too_large: set[str] = set()
        self.aborted: set[tuple[str, int]] = set()

    def add(self, source: tuple) -> None:
        name = f"r{len(self.names)}"
        request, texts = make_request(name, source, self.windows)
        self.names.append(name)
        self.expected.update({(name, index): text for index, text in enumerate(texts)})
        if not self.fits(request):
            self.too_large.add(name)
        self.core.add_request(request)

    def fits(self, request: GenerationRequest) -> bool:
        """Whether it can be computed alone; where tokens were resumed makes no difference."""
        layout, budget = self.runner.layout, self.core.scheduler.max_num_batched_tokens
        prompts = [request.prompt_token_ids]
        if request.negative_prompt_token_ids:
            prompts.append(request.negative_prompt_token_ids)
        lengths = [len(prompt) + request.params.max_tokens for prompt in prompts]

        def num_blocks(length: int, window: int | None) -> int:
            if window is None or length <= window + budget:
                return -(-length // layout.block_size)
            return -(-(window + budget) // layout.block_size) + 1  # it need not begin at a block

        return len(prompts) <= self.core.scheduler.max_num_seqs and all(
            sum(num_blocks(length, group.window) for length in lengths) <= group.num_blocks
            for group in layout.groups
        )

    def abort(self, number: int, index: int | None) -> None:
        if self.names:
            name = self.names[number % len(self.names)]
            self.core.abort(name, index)
            self.aborted |= {(name, i) for i in range(3) if index in (None, i)}
            self.core.check_integrity()

    def step(self, num_steps: int = 1) -> None:
        for _ in range(num_steps):
            for output in self.core.step():
                for delta in output.deltas:
                    key = (output.request_id, delta.index)
                    self.received.setdefault(key, []).extend(delta.token_ids)
                    if delta.finish_reason == "error":
                        assert delta.error_code == "context_length_exceeded"
                        assert output.request_id in self.too_large
            self.core.check_integrity()
            for batch in self.runner.batches[-1:]:
                assert batch.num_tokens <= self.core.scheduler.max_num_batched_tokens

    def act(self, action: str, argument: Any) -> None:
        match action:
            case "add":
                self.add(argument)
            case "step":
                self.step(argument)
            case "abort":
                self.abort(argument, None)
            case "abort_choice":
                self.abort(argument, argument % 3)

    def finish(self) -> None:
        for _ in range(4000):
            if not self.core.has_work:
                return
            self.step()
        raise AssertionError("something starves")


@pytest.mark.slow
@settings(
    max_examples=1000, deadline=None, suppress_health_check=[HealthCheck.too_slow], derandomize=True
)
@given(limits=ENGINES, actions=st.lists(ACTIONS, max_size=40))
def test_random_lives_leak_nothing_and_every_text_is_its_own(limits, actions):
    """After every step the books balance; at the end no block is used and all texts are right."""
    life = Life(limits)
    for action, argument in actions:
        life.act(action, argument)
    life.finish()
    stats = life.core.stats
    assert stats.kv_cache_usage == 0.0
    assert stats.num_requests_running == stats.num_requests_waiting == 0
    for key, text in life.expected.items():
        got = life.received.get(key, [])
        cut_short = key in life.aborted or key[0] in life.too_large
        assert got == (text[: len(got)] if cut_short else text)


@pytest.mark.slow
@pytest.mark.parametrize("runs_ahead", [False, True])
def test_random_lives_reach_the_hard_cases(runs_ahead):
    """Lives like these preempt, hit the prefix cache, guess right, launch before they read."""
    source = random.Random(1)
    kind = "open" if runs_ahead else "guessed"
    preemptions = hits = confirmed = ahead = 0
    for _ in range(60):
        life = Life(
            {
                "num_blocks": 26,
                "windows": source.choice([(None,), (1,), (None, 8)]),
                "max_num_seqs": 6,
                "max_num_batched_tokens": source.randint(4, 40),
                "prefix_caching": True,
                "mixed_batches": True,
                "runs_ahead": runs_ahead,
            }
        )
        for _ in range(8):
            prompt = [source.randint(0, 1) for _ in range(source.randint(1, 40))]
            life.add((prompt, 20, source.randint(0, 5), source.randint(1, 3), 0, kind))
            life.step(source.randint(0, 3))
        life.finish()
        preemptions += life.core.stats.num_preemptions
        hits += life.core.stats.prefix_cache_hits
        confirmed += life.core.stats.num_accepted_tokens
        if runs_ahead:
            ahead += sum(pair == ("launch", "launch") for pair in pairwise(life.runner.events))
    assert preemptions > 50
    assert hits > 500
    assert ahead > 50 if runs_ahead else confirmed > 500
