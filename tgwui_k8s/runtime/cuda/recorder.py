"""CUDA graphs from PyTorch: kernels noted while Python runs once, started together ever after."""

from __future__ import annotations

import torch

from tgwui_k8s.runtime.cuda.decode_graphs import Compute


class CudaRecorder:
    """Records on one device; see `decode_graphs.Record`.

    All graphs share a pool of memory, so that only one of them may run at a time, and a result is
    good until any of them runs again.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._pool = torch.cuda.graph_pool_handle()

    def __call__(self, compute: Compute) -> Compute:
        """Run once to compile and load what is needed, then once more to record it."""
        with torch.cuda.device(self._device):
            side = torch.cuda.Stream()
            side.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(side):
                compute()
            torch.cuda.current_stream().wait_stream(side)
            graph = torch.cuda.CUDAGraph()
            # Other threads of the process may use the device meanwhile.
            with torch.cuda.graph(graph, pool=self._pool, capture_error_mode="thread_local"):
                output = compute()

        def replay() -> torch.Tensor:
            graph.replay()
            return output

        return replay
