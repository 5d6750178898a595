"""The memory behind block ids."""

from __future__ import annotations

import torch

from tgwui_k8s.contract import KVGroup, KVLayout
from tgwui_k8s.runtime.kv_layout import LayerShape, group_layers
from tgwui_k8s.runtime.kv_tensors import KVTensors
from tgwui_k8s.runtime.limits import resident_memory

LAYERS = {
    0: LayerShape(num_kv_heads=2, key_dim=8, value_dim=4),
    1: LayerShape(num_kv_heads=1, key_dim=8, value_dim=8, window=32),
}


def make_tensors(num_blocks: int) -> KVTensors:
    """Two layers in two groups, blocks of four tokens."""
    layout = KVLayout(
        block_size=4,
        groups=(KVGroup(num_blocks=num_blocks), KVGroup(num_blocks=2 * num_blocks, window=32)),
    )
    groups = group_layers(LAYERS, block_size=4, element_bytes=4)
    return KVTensors(LAYERS, groups, layout, dtype=torch.float32, device=torch.device("cpu"))


def test_what_is_written_to_slots_is_gathered_from_blocks() -> None:
    """Slot 4 * block + offset; blocks come in the order asked for."""
    kv = make_tensors(8)
    key, value = torch.randn(5, 2, 8), torch.randn(5, 2, 4)
    kv.write(0, torch.tensor([24, 25, 26, 27, 12]), key, value)
    keys, values = kv.gather(0, torch.tensor([3, 6]))
    torch.testing.assert_close(keys[[4, 5, 6, 7, 0]], key)
    torch.testing.assert_close(values[[4, 5, 6, 7, 0]], value)
    assert not keys[1:4].any()


def test_layers_have_the_shape_and_number_of_blocks_of_their_group() -> None:
    """Head dimensions of keys and values may differ."""
    kv = make_tensors(8)
    assert kv.keys[0].shape == (8, 4, 2, 8)
    assert kv.values[0].shape == (8, 4, 2, 4)
    assert kv.keys[1].shape == (16, 4, 1, 8)
    assert kv.group_of_layer == {0: 0, 1: 1}


def test_memory_is_taken_when_it_is_written() -> None:
    """A cache of half a gigabyte costs next to nothing while it is empty."""
    before = resident_memory()
    kv = make_tensors(1 << 20)
    assert resident_memory() - before < 16 << 20
    assert not kv.keys[0][-1].any()
