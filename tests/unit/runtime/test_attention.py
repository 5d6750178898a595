"""Attention against its definition, written out in float64."""

from __future__ import annotations

import math

import pytest
import torch

from tgwui_k8s.runtime import attention
from tgwui_k8s.runtime.attention import Scoring, attend_chunk, attend_decodes

NUM_HEADS, NUM_KV_HEADS, KEY_DIM = 6, 2, 8
SCORINGS = {
    "plain": Scoring(0.3),
    "softcap": Scoring(0.3, softcap=2.0),
    "sinks": Scoring(0.3, sinks=torch.tensor([0.5, -1.0, 2.0, 0.0, 3.0, -2.0])),
    "both": Scoring(0.3, softcap=2.0, sinks=torch.arange(6.0)),
}


def defined(
    query: torch.Tensor,
    keys: torch.Tensor,
    values: torch.Tensor,
    visible: torch.Tensor,
    scoring: Scoring,
) -> torch.Tensor:
    """Queries [tokens, heads, dim] over [len, kv heads, dim]; `visible` is [tokens, len]."""
    output = torch.zeros(query.shape[0], query.shape[1], values.shape[2], dtype=torch.float64)
    for head in range(query.shape[1]):
        kv_head = head * keys.shape[1] // query.shape[1]
        scores = query[:, head].double() @ keys[:, kv_head].double().T * scoring.scaling
        if scoring.softcap is not None:
            scores = (scores / scoring.softcap).tanh() * scoring.softcap
        weights = scores.exp() * visible
        total = weights.sum(1, keepdim=True)
        if scoring.sinks is not None:
            total = total + scoring.sinks[head].double().exp()
        output[:, head] = weights / total @ values[:, kv_head].double()
    return output


def random_tensors(num_queries: int, num_keys: int, value_dim: int) -> tuple[torch.Tensor, ...]:
    """Query, keys and values."""
    generator = torch.Generator().manual_seed(num_queries + num_keys)
    return (
        torch.randn(num_queries, NUM_HEADS, KEY_DIM, generator=generator),
        torch.randn(num_keys, NUM_KV_HEADS, KEY_DIM, generator=generator),
        torch.randn(num_keys, NUM_KV_HEADS, value_dim, generator=generator),
    )


def to_mask(visible: torch.Tensor) -> torch.Tensor:
    """Additive: 0 where visible, else minus infinity."""
    return torch.zeros(visible.shape).masked_fill_(~visible, -math.inf)


@pytest.fixture(params=list(SCORINGS))
def scoring(request: pytest.FixtureRequest) -> Scoring:
    """Every way from scores to weights."""
    return SCORINGS[request.param]


@pytest.fixture(params=[KEY_DIM, 12])
def value_dim(request: pytest.FixtureRequest) -> int:
    """As wide as the keys, or not."""
    return int(request.param)


def test_a_first_chunk_is_causal(scoring: Scoring, value_dim: int) -> None:
    """Without a mask, every token sees itself and those before it."""
    query, keys, values = random_tensors(9, 9, value_dim)
    visible = torch.ones(9, 9, dtype=torch.bool).tril()
    expected = defined(query, keys, values, visible, scoring)
    torch.testing.assert_close(
        attend_chunk(query, keys, values, None, scoring).double(), expected, rtol=0, atol=1e-5
    )


@pytest.mark.parametrize("max_scores", [1 << 24, 50, 1])
def test_a_later_chunk_follows_its_mask(
    scoring: Scoring, value_dim: int, monkeypatch: pytest.MonkeyPatch, max_scores: int
) -> None:
    """Over a context and within a window, however many queries are computed at a time."""
    monkeypatch.setattr(attention, "_MAX_SCORES", max_scores)
    query, keys, values = random_tensors(5, 20, value_dim)
    visible = torch.ones(5, 20, dtype=torch.bool).tril(15).triu(9)
    expected = defined(query, keys, values, visible, scoring)
    actual = attend_chunk(query, keys, values, to_mask(visible), scoring)
    torch.testing.assert_close(actual.double(), expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("max_scores", [1 << 24, 1])
def test_decodes_see_their_own_context_alone(
    scoring: Scoring, value_dim: int, monkeypatch: pytest.MonkeyPatch, max_scores: int
) -> None:
    """Rows of different lengths side by side; what is hidden may hold anything finite."""
    monkeypatch.setattr(attention, "_MAX_SCORES", max_scores)
    rows = [random_tensors(1, 16, value_dim) for _ in range(3)]
    visible = torch.arange(16) < torch.tensor([[16], [5], [1]])
    query = torch.cat([row[0] for row in rows])
    keys, values = (torch.stack([row[index] for row in rows]) for index in (1, 2))
    actual = attend_decodes(query, keys, values, to_mask(visible)[:, None, None, :], scoring)
    for index, row in enumerate(rows):
        expected = defined(*row, visible[index : index + 1], scoring)[0]
        torch.testing.assert_close(actual[index].double(), expected, rtol=0, atol=1e-5)


def test_the_scale_is_the_head_dimensions_unless_given() -> None:
    """As in Transformers: 1 / sqrt(head_dim) by default."""
    assert Scoring.from_options({}, 64).scaling == 0.125
    assert Scoring.from_options({"scaling": 1.0, "softcap": 5.0}, 64) == Scoring(1.0, 5.0)
