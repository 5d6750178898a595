"""The attention kernels: against float64 in Triton's interpreter, and through its compiler.

Run by `make test-triton`, which brings Triton; with a CUDA device the kernels themselves run.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.helpers.triton_interpreter import interpret_without_cuda

HAS_CUDA = torch.cuda.is_available()
interpret_without_cuda()

pytest.importorskip("triton", reason="needs Triton, of make test-triton")

from tests.helpers.paged_driver import PagedDriver  # noqa: E402
from tests.helpers.replays import ReplayingBackend  # noqa: E402
from tests.helpers.transformers_models import (  # noqa: E402
    ModelPair,
    assert_close,
    random_tokens,
)
from tgwui_k8s.contract import Batch, KVGroup, KVLayout, ScheduledSequence  # noqa: E402
from tgwui_k8s.runtime import transformers_runner  # noqa: E402
from tgwui_k8s.runtime.cuda import launches  # noqa: E402
from tgwui_k8s.runtime.cuda.attention import TritonAttention  # noqa: E402
from tgwui_k8s.runtime.cuda.backend import NumberedBackend  # noqa: E402
from tgwui_k8s.runtime.kv_layout import LayerShape, group_layers  # noqa: E402
from tgwui_k8s.runtime.kv_tensors import KVTensors  # noqa: E402

DEVICE = torch.device("cuda" if HAS_CUDA else "cpu")
BLOCK_SIZE = 16

# The interpreter multiplies no bfloat16: on a CPU it is only compiled.
DTYPES = [(torch.float32, 1e-5), (torch.float16, 4e-3)]
if HAS_CUDA:
    DTYPES.append((torch.bfloat16, 3e-2))


@dataclass
class Scene:
    """One layer with a scrambled cache, and the truth about what every sequence holds."""

    shape: LayerShape
    dtype: torch.dtype
    options: dict[str, Any]
    num_blocks: int = 64
    arrange: Callable[[torch.Tensor], torch.Tensor] = lambda tensor: tensor

    def __post_init__(self) -> None:
        groups = group_layers({0: self.shape}, block_size=BLOCK_SIZE, element_bytes=4)
        layout = KVLayout(
            block_size=BLOCK_SIZE,
            groups=(KVGroup(num_blocks=self.num_blocks, window=self.shape.window),),
        )
        self.kv = KVTensors({0: self.shape}, groups, layout, dtype=self.dtype, device=DEVICE)
        self.backend = NumberedBackend(self.kv, [self.shape.window], BLOCK_SIZE, TritonAttention)
        self.free = torch.randperm(self.num_blocks).tolist()

    @property
    def num_heads(self) -> int:
        return self.shape.num_kv_heads * self.shape.queries_per_key

    def random(self, *size: int) -> torch.Tensor:
        return torch.randn(*size, device=DEVICE).to(self.dtype)

    def step(self, lengths: list[tuple[int, int]]) -> tuple[torch.Tensor, torch.Tensor]:
        """Output for sequences of (tokens before, new tokens), and what float64 says it is."""
        scheduled, expected, queries, keys, values = [], [], [], [], []
        for row, (start, count) in enumerate(lengths):
            table = [self.free.pop() for _ in range(-(-(start + count) // BLOCK_SIZE))]
            context = self.shape.num_kv_heads, self.shape.key_dim
            key = self.random(start + count, *context)
            value = self.random(start + count, self.shape.num_kv_heads, self.shape.value_dim)
            query = self.random(count, self.num_heads, self.shape.key_dim)
            slots = torch.tensor(
                [table[i // BLOCK_SIZE] * BLOCK_SIZE + i % BLOCK_SIZE for i in range(start)],
                dtype=torch.int64,
                device=DEVICE,
            )
            self.kv.write(0, slots, key[:start], value[:start])
            expected.append(self.defined(query, key, value, start))
            if self.shape.window is not None:
                first = max(0, start - self.shape.window + 1) // BLOCK_SIZE
                table[:first] = [-1] * first
            scheduled.append(ScheduledSequence(row, start, [0] * count, (table,), 1))
            queries.append(query)
            keys.append(key[start:])
            values.append(value[start:])
        step = self.backend.begin_step(Batch(scheduled, sum(count for _, count in lengths)))
        new = [self.arrange(torch.cat(parts)) for parts in (queries, keys, values)]
        output = step.attention.attend(0, *new, self.options)
        assert output.dtype == self.dtype
        return output, torch.cat(expected)

    def defined(
        self, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, start: int
    ) -> torch.Tensor:
        """Attention by its definition, in float64."""
        query, key, value = query.double(), key.double(), value.double()
        group = self.shape.queries_per_key
        scaling = self.options.get("scaling") or 1 / math.sqrt(self.shape.key_dim)
        scores = torch.einsum("qhd,khd->hqk", query, key.repeat_interleave(group, 1)) * scaling
        if softcap := self.options.get("softcap"):
            scores = torch.tanh(scores / softcap) * softcap
        asking = torch.arange(start, start + len(query), device=DEVICE)[:, None]
        asked = torch.arange(len(key), device=DEVICE)[None, :]
        visible = asked <= asking
        if self.shape.window is not None:
            visible &= asked > asking - self.shape.window
        scores = scores.masked_fill(~visible, -math.inf)
        if (sinks := self.options.get("s_aux")) is not None:
            column = sinks.double()[:, None, None].expand(-1, len(query), 1)
            scores = torch.cat([scores, column], dim=-1)
        weights = scores.softmax(-1)[..., : len(key)]
        return torch.einsum("hqk,khd->qhd", weights, value.repeat_interleave(group, 1))


MIXED = [(5, 1), (0, 17), (130, 1), (20, 3), (31, 20)]
"""Single queries, one of them in two spans and some of guessed tokens, and chunks; ragged."""


@pytest.mark.parametrize(("dtype", "tolerance"), DTYPES)
@pytest.mark.parametrize(
    ("head_dim", "group", "num_kv_heads"),
    [(64, 1, 3), (80, 2, 1), (96, 3, 1), (128, 4, 2), (128, 8, 1), (256, 2, 1), (64, 7, 1)],
)
def test_heads_of_all_sizes(
    head_dim: int, group: int, num_kv_heads: int, dtype: torch.dtype, tolerance: float
) -> None:
    """Decodes, guessed tokens, chunks and prompts of ragged lengths in one step."""
    scene = Scene(LayerShape(num_kv_heads, head_dim, head_dim, queries_per_key=group), dtype, {})
    output, expected = scene.step(MIXED)
    assert (output.double() - expected).abs().max() < tolerance


@pytest.mark.parametrize(
    ("window", "softcap", "has_sinks"),
    [(1, None, False), (7, 2.0, True), (16, None, True), (40, 2.0, False), (None, 5.0, True)],
)
def test_what_architectures_add(window: int | None, softcap: float | None, has_sinks: bool) -> None:
    """Windows over blocks that are gone, soft caps and sinks, alone and together."""
    shape = LayerShape(1, 64, 64, window=window, queries_per_key=2)
    sinks = torch.randn(2, device=DEVICE) * 3 if has_sinks else None
    options = {"scaling": 0.3, "softcap": softcap, "s_aux": sinks}
    output, expected = Scene(shape, torch.float32, options).step(MIXED)
    assert (output.double() - expected).abs().max() < 1e-5


def test_values_of_another_width_than_keys() -> None:
    """As DeepSeek has them."""
    scene = Scene(LayerShape(2, 192, 128, queries_per_key=1), torch.float32, {})
    output, expected = scene.step(MIXED)
    assert (output.double() - expected).abs().max() < 1e-5


def test_a_long_context_beside_short_ones() -> None:
    """It is cut into more spans than one pass adds up, and its scores are large."""
    scene = Scene(LayerShape(1, 64, 64), torch.float32, {"scaling": 4.0}, num_blocks=140)
    output, expected = scene.step([(3, 1), (2047, 1), (64, 1)])
    assert (output.double() - expected).abs().max() < 1e-4


def test_layouts_that_models_hand_over() -> None:
    """Heads before tokens in memory, or a head's numbers apart: the strides are honoured."""
    shape = LayerShape(2, 64, 64, queries_per_key=2)
    scene = Scene(shape, torch.float32, {})
    scene.arrange = lambda tensor: tensor.transpose(0, 1).contiguous().transpose(0, 1)
    output, expected = scene.step([(9, 1), (0, 20)])
    assert (output.double() - expected).abs().max() < 1e-5
    scene.arrange = lambda tensor: tensor.transpose(1, 2).contiguous().transpose(1, 2)
    output, expected = scene.step([(9, 1), (0, 20)])
    assert (output.double() - expected).abs().max() < 1e-5


def test_nothing_but_the_slots_is_written() -> None:
    """Each new token's keys and values, in their places; a padded row's nowhere."""
    scene = Scene(LayerShape(3, 80, 64, queries_per_key=1), torch.float32, {})
    key, value = scene.random(3, 3, 80), scene.random(3, 3, 64)
    cache = launches.Cache(scene.kv.keys[0], scene.kv.values[0])
    slots = torch.tensor([40, -1, 7], dtype=torch.int32, device=DEVICE)
    launches.write(cache, key, value, slots)
    keys, values = scene.kv.keys[0].flatten(0, 1), scene.kv.values[0].flatten(0, 1)
    assert torch.equal(keys[[40, 7]], key[[0, 2]])
    assert torch.equal(values[[40, 7]], value[[0, 2]])
    assert keys.count_nonzero() == 2 * 3 * 80
    assert values.count_nonzero() == 2 * 3 * 64


def test_a_model_is_stepped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A prompt, a mixed step and padded, replayed decodes give Transformers' logits: Gemma 2's,
    with two KV groups, windows and soft caps."""
    backend = ReplayingBackend(TritonAttention)
    monkeypatch.setattr(transformers_runner, "choose_backend", backend)
    models = ModelPair.make(tmp_path, "gemma2")
    models.runner.warm_up()
    tokens = {name: random_tokens(45, seed) for seed, name in enumerate("abc")}
    expected = {name: models.expected(ids) for name, ids in tokens.items()}
    driver = PagedDriver(models.runner)
    sequences = {name: driver.start() for name in tokens}
    for step in ({"a": 40, "b": 2}, {"a": 1, "c": 30, "b": 1}, {"c": 1, "b": 1, "a": 1}):
        starts = {name: sequences[name].num_computed for name in step}
        parts = [
            (sequences[name], tokens[name][starts[name] : starts[name] + count])
            for name, count in step.items()
        ]
        for (name, count), logits in zip(step.items(), driver.run(*parts), strict=True):
            assert_close(logits, expected[name][starts[name] : starts[name] + count])
    assert backend.record.num_replayed == 1
