"""The attention kernels: against float64 in Triton's interpreter, and through its compiler.

Run by `make test-triton`, which brings Triton; with a CUDA device the kernels themselves run.
"""

from __future__ import annotations

import math
import os
from dataclasses import dataclass
from typing import Any

import pytest
import torch

HAS_CUDA = torch.cuda.is_available()
if not HAS_CUDA:
    os.environ["TRITON_INTERPRET"] = "1"

pytest.importorskip("triton", reason="needs Triton, of make test-triton")

from tgwui_k8s.contract import Batch, KVGroup, KVLayout, ScheduledSequence  # noqa: E402
from tgwui_k8s.runtime.cuda.attention import TritonAttention  # noqa: E402
from tgwui_k8s.runtime.cuda.backend import NumberedBackend  # noqa: E402
from tgwui_k8s.runtime.kv_layout import LayerShape, group_layers  # noqa: E402
from tgwui_k8s.runtime.kv_tensors import KVTensors  # noqa: E402

DEVICE = torch.device("cuda" if HAS_CUDA else "cpu")
BLOCK_SIZE = 16
NUM_BLOCKS = 64

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

    def __post_init__(self) -> None:
        groups = group_layers({0: self.shape}, block_size=BLOCK_SIZE, element_bytes=4)
        layout = KVLayout(
            block_size=BLOCK_SIZE,
            groups=(KVGroup(num_blocks=NUM_BLOCKS, window=self.shape.window),),
        )
        self.kv = KVTensors({0: self.shape}, groups, layout, dtype=self.dtype, device=DEVICE)
        self.backend = NumberedBackend(
            self.kv, [self.shape.window], BLOCK_SIZE, TritonAttention
        )
        self.free = torch.randperm(NUM_BLOCKS).tolist()

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
        output = step.attention.attend(
            0, torch.cat(queries), torch.cat(keys), torch.cat(values), self.options
        )
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


MIXED = [(0, 1), (5, 1), (40, 1), (0, 17), (15, 1), (31, 20), (130, 1), (16, 3), (0, 40)]


@pytest.mark.parametrize(("dtype", "tolerance"), DTYPES)
@pytest.mark.parametrize("head_dim", [64, 80, 96, 128, 256])
@pytest.mark.parametrize("group", [1, 2, 3, 4, 8])
def test_heads_of_all_sizes(
    head_dim: int, group: int, dtype: torch.dtype, tolerance: float
) -> None:
    """Decodes, chunks and prompts of ragged lengths in one step."""
    shape = LayerShape(2, head_dim, head_dim, queries_per_key=group)
    output, expected = Scene(shape, dtype, {}).step(MIXED)
    assert (output.double() - expected).abs().max() < tolerance
