"""Our paged, unpadded, mixed batches give Transformers' own logits, for every architecture."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from tests.helpers.paged_driver import PagedDriver
from tests.helpers.transformers_models import ModelPair, assert_close, random_tokens

ROPE = {"rope_theta": 10000.0}
VARIANTS: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("llama", {}),
    "llama tied": ("llama", {"tie_word_embeddings": True}),
    "llama one key head": ("llama", {"num_key_value_heads": 1}),
    "llama no grouping": ("llama", {"num_key_value_heads": 4}),
    "llama biases": ("llama", {"attention_bias": True, "mlp_bias": True}),
    "linear rope": ("llama", {"rope_parameters": {**ROPE, "rope_type": "linear", "factor": 2.0}}),
    "dynamic rope": ("llama", {"rope_parameters": {**ROPE, "rope_type": "dynamic", "factor": 2.0}}),
    "yarn rope": (
        "llama",
        {
            "rope_parameters": {
                **ROPE,
                "rope_type": "yarn",
                "factor": 4.0,
                "original_max_position_embeddings": 64,
            }
        },
    ),
    "llama3 rope": (
        "llama",
        {
            "rope_parameters": {
                **ROPE,
                "rope_type": "llama3",
                "factor": 8.0,
                "low_freq_factor": 1.0,
                "high_freq_factor": 4.0,
                "original_max_position_embeddings": 64,
            }
        },
    ),
    "mistral": ("mistral", {}),
    "mistral without window": ("mistral", {"sliding_window": None}),
    "mistral narrow window": ("mistral", {"sliding_window": 5}),
    "qwen2": ("qwen2", {}),
    "qwen2 mixed windows": (
        "qwen2",
        {"use_sliding_window": True, "sliding_window": 24, "max_window_layers": 2},
    ),
    "qwen3": ("qwen3", {}),
    "gemma": ("gemma", {}),
    "gemma2": ("gemma2", {}),
    "gemma3": ("gemma3_text", {}),
    "phi": ("phi", {}),
    "phi3": ("phi3", {}),
    "gpt2": ("gpt2", {}),
    "gpt_neox": ("gpt_neox", {}),
    "opt": ("opt", {}),
    "gpt_oss": ("gpt_oss", {}),
    "qwen3_moe": ("qwen3_moe", {}),
    "deepseek_v2": ("deepseek_v2", {}),
}


@pytest.fixture(scope="module", params=list(VARIANTS))
def models(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[ModelPair]:
    """One variant, loaded twice."""
    architecture, overrides = VARIANTS[request.param]
    pair = ModelPair.make(tmp_path_factory.mktemp("model"), architecture, **overrides)
    yield pair
    pair.runner.close()


def test_a_whole_prompt(models: ModelPair) -> None:
    """Every position of a prompt computed at once."""
    tokens = random_tokens(97, seed=1)
    _, logits = PagedDriver(models.runner).prefill(tokens)
    assert_close(logits, models.expected(tokens))


def test_a_prompt_in_chunks(models: ModelPair) -> None:
    """Cut anywhere, in the middle of blocks and windows and down to single tokens."""
    tokens = random_tokens(97, seed=2)
    driver = PagedDriver(models.runner)
    sequence = driver.start()
    logits = [
        driver.run((sequence, tokens[start:end]))[0]
        for start, end in ((0, 3), (3, 20), (20, 21), (21, 48), (48, 97))
    ]
    assert_close(np.concatenate(logits), models.expected(tokens))


def test_decoding_token_by_token(models: ModelPair) -> None:
    """Single tokens over a context that grows past blocks and windows."""
    tokens = random_tokens(80, seed=3)
    driver = PagedDriver(models.runner)
    sequence, logits = driver.prefill(tokens[:10])
    steps = [logits] + [driver.run((sequence, [token]))[0] for token in tokens[10:]]
    assert_close(np.concatenate(steps), models.expected(tokens))
    has_windows = any(group.window is not None for group in models.runner.layout.groups)
    assert any(-1 in table for table in sequence.block_tables) == has_windows


def test_sequences_do_not_see_each_other(models: ModelPair) -> None:
    """Prefills, later chunks and decodes of very different lengths in one step."""
    tokens = {name: random_tokens(120, seed) for seed, name in enumerate("abcde")}
    expected = {name: models.expected(ids) for name, ids in tokens.items()}
    driver = PagedDriver(models.runner)
    sequences = {name: driver.start() for name in tokens}

    def check(**num_tokens: int) -> None:
        parts = {}
        for name, count in num_tokens.items():
            start = sequences[name].num_computed
            parts[name] = (sequences[name], tokens[name][start : start + count])
        results = driver.run(*parts.values())
        for (name, (sequence, ids)), logits in zip(parts.items(), results, strict=True):
            end = sequence.num_computed
            assert_close(logits, expected[name][end - len(ids) : end])

    check(a=90)
    check(b=3, c=40)
    check(a=1, c=1, d=17, b=1)
    check(d=60, b=1, a=1, e=1, c=1)
    check(e=1, d=1, c=1, b=1, a=1)
    check(e=2, c=1, a=1)
    check(a=1)


def test_greedy_text_is_that_of_generate(models: ModelPair) -> None:
    """Forty tokens, one step each, equal Transformers' own with its own cache."""
    prompt = random_tokens(30, seed=11)
    tokens = PagedDriver(models.runner).generate(prompt, 40)
    assert tokens == models.expected_tokens(prompt, 40)


def test_only_wanted_logits_come_back(models: ModelPair) -> None:
    """The last of each part, or none at all for a chunk that is not the last."""
    first, second = random_tokens(20, seed=12), random_tokens(9, seed=13)
    driver = PagedDriver(models.runner)
    a, b = driver.start(), driver.start()
    logits = driver.run((a, first), (b, second), num_logits=1)
    assert_close(logits[0], models.expected(first)[-1:])
    assert_close(logits[1], models.expected(second)[-1:])
    (nothing,) = driver.run((a, second), num_logits=0)
    assert nothing.shape == (0, models.runner.info.vocab_size)
