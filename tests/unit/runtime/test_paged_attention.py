"""Attention over blocks that somebody else has used before."""

from __future__ import annotations

import pytest
import torch

from tgwui_k8s.contract import Batch, KVGroup, KVLayout, ScheduledSequence
from tgwui_k8s.runtime.kv_layout import LayerShape, group_layers
from tgwui_k8s.runtime.kv_tensors import KVTensors
from tgwui_k8s.runtime.paged_attention import PagedAttention

BLOCK_SIZE = 4
NUM_BLOCKS = 12
DIM = 8


class Cache:
    """One layer, whose queries, keys and values are drawn by token."""

    def __init__(self, window: int | None) -> None:
        layers = {0: LayerShape(num_kv_heads=2, key_dim=DIM, value_dim=DIM, window=window)}
        groups = group_layers(layers, block_size=BLOCK_SIZE, element_bytes=4)
        layout = KVLayout(
            block_size=BLOCK_SIZE, groups=(KVGroup(num_blocks=NUM_BLOCKS, window=window),)
        )
        kv = KVTensors(layers, groups, layout, dtype=torch.float32, device=torch.device("cpu"))
        self.attention = PagedAttention(kv, [window], BLOCK_SIZE)

    def step(self, *parts: ScheduledSequence, factor: float = 1.0) -> torch.Tensor:
        """Attention of all tokens of a step."""
        token_ids = [token for part in parts for token in part.token_ids]
        self.attention.begin_step(Batch(list(parts), len(token_ids)))
        rows = [
            torch.randn(8, DIM, generator=torch.Generator().manual_seed(token))
            for token in token_ids
        ]
        drawn = torch.stack(rows) * factor
        return self.attention.attend(0, drawn[:, :4], drawn[:, 4:6], drawn[:, 6:], {})


def part(start: int, num_tokens: int, *blocks: int) -> ScheduledSequence:
    """Tokens of a sequence in these blocks; the first of them names the sequence."""
    token_ids = [100 * blocks[0] + position for position in range(start, start + num_tokens)]
    return ScheduledSequence(0, start, token_ids, ([*blocks],), 1)


@pytest.mark.parametrize("window", [None, 6])
def test_a_broken_sequence_leaves_nothing_in_its_blocks(window: int | None) -> None:
    """NaN in keys and values that a mask hides is as good as zero, in chunks and ragged decodes."""

    def live(cache: Cache) -> list[torch.Tensor]:
        steps = [cache.step(part(0, 5, 0, 1), part(0, 10, 2, 3, 4))]
        for length in range(5, 14):
            longer = part(length + 5, 1, 2, 3, 4, 5, 6)
            steps.append(cache.step(part(length, 1, 0, 1, 7, 8), longer))
        return [*steps, cache.step(part(14, 7, 0, 1, 7, 8, 9, 10), part(19, 1, 2, 3, 4, 5, 6))]

    fresh, used = Cache(window), Cache(window)
    broken = used.step(part(0, 4 * NUM_BLOCKS, *range(NUM_BLOCKS)), factor=float("nan"))
    assert broken.isnan().all()
    for expected, got in zip(live(fresh), live(used), strict=True):
        assert expected.isfinite().all()
        assert torch.equal(got, expected)
