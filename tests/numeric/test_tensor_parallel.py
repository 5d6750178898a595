"""A model on two ranks: what it computes, what each keeps, what is told of it."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest

from loaders.hf_transformers import TransformersLoader
from tests.helpers.paged_driver import PagedDriver
from tests.helpers.transformers_models import ModelPair, assert_close, load_request, random_tokens
from tgwui_k8s.contract import ModelRunner

MODELS = {
    "llama, two key heads": ("llama", {"tie_word_embeddings": True}),
    "qwen3 experts": ("qwen3_moe", {}),
}
"""Embedding and head share their weights in the first; experts are cut in the second."""


@pytest.fixture(scope="module", name="models", params=MODELS)
def _models(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[ModelPair, ModelRunner]]:
    """A tiny model in one process, and the same on two."""
    architecture, overrides = MODELS[request.param]
    pair = ModelPair.make(tmp_path_factory.mktemp("model"), architecture, **overrides)
    on_two = load_request(pair.folder, options={"tensor_parallel_size": "2"})
    runner = TransformersLoader().load(on_two, lambda _: None)
    runner.warm_up()
    yield pair, runner
    runner.close()
    pair.runner.close()


def test_two_ranks_compute_what_transformers_does(models: tuple[ModelPair, ModelRunner]) -> None:
    """Prefills, chunks and decodes in one step give Transformers' logits in float32."""
    pair, runner = models
    first, second = random_tokens(60, seed=1), random_tokens(45, seed=2)
    driver = PagedDriver(runner)
    a, logits = driver.prefill(first[:30])
    b = driver.start()
    steps = [driver.run((a, first[30:31]), (b, second[:40])), driver.run((b, second[40:]))]
    rest = driver.run((a, first[31:]))

    assert_close(np.concatenate([logits, steps[0][0], *rest]), pair.expected(first))
    assert_close(np.concatenate([steps[0][1], *steps[1]]), pair.expected(second))


def test_two_ranks_say_what_generate_says(models: tuple[ModelPair, ModelRunner]) -> None:
    """Greedy text, token by token."""
    pair, runner = models
    prompt = random_tokens(20, seed=3)

    assert PagedDriver(runner).generate(prompt, 30) == pair.expected_tokens(prompt, 30)


def test_each_rank_keeps_its_share_of_the_cache(models: tuple[ModelPair, ModelRunner]) -> None:
    """Half the key heads on each: the same memory of each rank holds twice the tokens."""
    pair, runner = models
    (alone,), (shared,) = pair.runner.layout.groups, runner.layout.groups

    assert shared.num_blocks == 2 * alone.num_blocks


def test_what_is_told_of_the_model(models: tuple[ModelPair, ModelRunner]) -> None:
    """The whole model's sizes; no adapters; sums in another order are another fingerprint."""
    pair, runner = models
    alone, shared = pair.runner.info, runner.info

    assert shared.num_parameters == alone.num_parameters
    assert shared.details == {"tensor_parallel_size": 2}
    assert not shared.capabilities.adapters
    assert shared.fingerprint != alone.fingerprint
