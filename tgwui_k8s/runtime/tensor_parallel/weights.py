"""Tensors of a checkpoint of which a rank takes a part, as Transformers asks for it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from tgwui_k8s.runtime.checkpoint_reader import LazyTensor
from tgwui_k8s.storage.weights import WeightFiles


class SliceableTensor:
    """A tensor that is read when it is indexed, and of which only the part that was asked stays.

    Read whole: all ranks read the same bytes, of which only the first comes from the disk.
    """

    def __init__(self, tensor: LazyTensor, shape: tuple[int, ...]) -> None:
        self._tensor = tensor
        self._shape = shape

    def get_shape(self) -> list[int]:
        """Its sizes, as safetensors' slices tell them."""
        return list(self._shape)

    def __getitem__(self, index: Any) -> torch.Tensor:
        """Read it, and keep the part at `index`."""
        tensor = self._tensor[...]
        return tensor if index is ... else tensor[index].clone()


def sliceable(
    tensors: Mapping[str, LazyTensor], weights: WeightFiles
) -> dict[str, SliceableTensor]:
    """The tensors of these safetensors files."""
    return {
        name: SliceableTensor(tensor, tuple(weights.tensors[name].shape))
        for name, tensor in tensors.items()
    }
