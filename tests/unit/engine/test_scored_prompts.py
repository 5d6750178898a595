"""Many prompts whose log probabilities are wanted at once, and the memory that logits take."""

from __future__ import annotations

import pytest

from tests.helpers.toy_runner import ToyDevice, ToyRunner, expected_tokens, make_core
from tgwui_k8s.contract import MAX_SCORED_ROWS, GenerationRequest, TokenDelta
from tgwui_k8s.sampling import SamplingParams

NUM_PROMPTS = 8
MAX_NUM_SEQS = 10
PROMPTS = [tuple((index + i * i) % 39 + 1 for i in range(300)) for index in range(NUM_PROMPTS)]


def ask(index: int, **params: object) -> GenerationRequest:
    return GenerationRequest(
        request_id=str(index),
        prompt_token_ids=PROMPTS[index],
        params=SamplingParams(
            max_tokens=3, temperature=0.0, ignore_eos=True, prompt_logprobs=1, **params
        ),
        negative_prompt_token_ids=(1, 2, 3) if params else (),
    )


def run(*requests: GenerationRequest, kind: type[ToyRunner] = ToyRunner):
    """Deltas by request, the order in which they began, and the engine."""
    runner = kind(num_blocks=1000, max_model_len=400)
    core = make_core(runner, max_num_seqs=MAX_NUM_SEQS, max_num_batched_tokens=4096)
    for request in requests:
        core.add_request(request)
    deltas: dict[str, list[TokenDelta]] = {}
    while core.has_work:
        for output in core.step():
            deltas.setdefault(output.request_id, []).extend(output.deltas)
        core.check_integrity()
    return deltas, core


@pytest.mark.parametrize("kind", [ToyRunner, ToyDevice])
@pytest.mark.parametrize("guidance", [{}, {"guidance_scale": 1.5}])
def test_scored_prompts_share_the_rows_that_a_step_has_memory_for(kind, guidance) -> None:
    """The step's logits stay within what loaders reserve; each is scored as if alone."""
    requests = [ask(index, **guidance) for index in range(NUM_PROMPTS)]
    together, core = run(*requests, kind=kind)
    largest = max(batch.num_logits for batch in core.runner.batches)
    assert MAX_SCORED_ROWS <= largest <= MAX_SCORED_ROWS + MAX_NUM_SEQS
    for request in requests:
        alone, _ = run(request, kind=kind)
        scores = together[request.request_id][0].prompt_logprobs
        assert scores == alone[request.request_id][0].prompt_logprobs
        assert [score.token_id for score in scores] == list(request.prompt_token_ids[1:])
        tokens = [t for delta in together[request.request_id] for t in delta.token_ids]
        assert tokens == [t for delta in alone[request.request_id] for t in delta.token_ids]


def test_nobody_waits_for_prompts_that_wait_for_rows() -> None:
    """The first prompt gets all the rows there are, and an ordinary request behind them starts."""
    plain = GenerationRequest(
        request_id="plain",
        prompt_token_ids=(1, 2),
        params=SamplingParams(max_tokens=3, temperature=0.0, ignore_eos=True),
    )
    deltas, core = run(*(ask(index) for index in range(NUM_PROMPTS)), plain)
    first = core.runner.batches[0].sequences
    assert [len(scheduled.token_ids) for scheduled in first] == [MAX_SCORED_ROWS, 2]
    tokens = [token for delta in deltas["plain"] for token in delta.token_ids]
    assert tokens == expected_tokens((1, 2), plain.params)
