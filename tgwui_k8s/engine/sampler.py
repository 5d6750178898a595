"""The sampler for logits that lie on the host: llama.cpp, Neuron, and any model on the CPU.

It is also the readable reference; `tgwui_k8s.runtime.sampler` does the same with torch, and one
test holds the two equal. What happens to which row is decided in
`tgwui_k8s.runtime.samplers.pipeline`; each sampler's arithmetic is in `tgwui_k8s.engine.samplers`.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from tgwui_k8s.contract import Logits, SampledToken, SamplingRow, TopLogprobs
from tgwui_k8s.engine.samplers.rows import NumpyKernels
from tgwui_k8s.runtime.samplers.pipeline import RowSampler


class NumpySampler(RowSampler):
    """Samples from NumPy arrays, or from torch tensors in host memory, which it reads in place."""

    def __init__(self) -> None:
        super().__init__(NumpyKernels())

    def sample(
        self,
        logits: Logits,
        rows: Sequence[SamplingRow],
        indices: Sequence[int],
        guidance_indices: Sequence[int | None],
    ) -> list[SampledToken]:
        """Choose the next token of every row; see `Sampler.sample`."""
        # Minus infinity is a removed candidate here: differences and logarithms of it are meant.
        with np.errstate(all="ignore"):
            return super().sample(np.asarray(logits), rows, indices, guidance_indices)

    def replay(self, logits: Logits, row: SamplingRow, token_ids: Sequence[int]) -> None:
        """Bring `row.state` to where it was after `token_ids`; see `Sampler.replay`."""
        with np.errstate(all="ignore"):
            super().replay(np.asarray(logits), row, token_ids)

    def prompt_logprobs(
        self, logits: Logits, target_token_ids: Sequence[int], num_top: int
    ) -> list[TopLogprobs]:
        """Log probabilities of given tokens, one per row of `logits`."""
        with np.errstate(all="ignore"):
            return super().prompt_logprobs(np.asarray(logits), target_token_ids, num_top)
