"""Recording without a GPU: what was recorded is computed again over the same memory."""

from __future__ import annotations

import torch

from tgwui_k8s.contract import KVLayout
from tgwui_k8s.runtime.cuda.backend import MakeAttention, NumberedBackend
from tgwui_k8s.runtime.cuda.decode_graphs import Compute, DecodeGraphs
from tgwui_k8s.runtime.kv_tensors import KVTensors
from tgwui_k8s.runtime.model_step import PagedBackend
from tgwui_k8s.runtime.paged_backend import Forward


class Replays:
    """A `Record` that keeps a graph's promises: one result, in one place, from fixed memory."""

    def __init__(self) -> None:
        self.num_recorded = 0
        self.num_replayed = 0

    def __call__(self, compute: Compute) -> Compute:
        """Compute now, and again at every replay."""
        output = compute()
        self.num_recorded += 1

        def replay() -> torch.Tensor:
            self.num_replayed += 1
            return output.copy_(compute())

        return replay


class ReplayingBackend:
    """Takes the place of `choose_backend`: the GPU's path on a CPU."""

    def __init__(self, make_attention: MakeAttention) -> None:
        self.record = Replays()
        self._make_attention = make_attention

    def __call__(
        self, kv: KVTensors, layout: KVLayout, forward: Forward
    ) -> tuple[PagedBackend, DecodeGraphs]:
        """See `choose_backend`."""
        windows = [group.window for group in layout.groups]
        backend = NumberedBackend(kv, windows, layout.block_size, self._make_attention)
        return backend, DecodeGraphs(backend, forward, self.record)
