"""The sampler for logits that lie on a device.

The same pipeline as `tgwui_k8s.engine.sampler`, with torch's arithmetic where the logits are; what
was chosen comes back to the host in one transfer a step. It works on any torch device; for logits
in host memory the NumPy sampler is several times faster and reads them in place, so a runner on
the CPU leaves `ModelRunner.sampler` None.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from tgwui_k8s.contract import Logits, SampledToken, SamplingRow, TopLogprobs
from tgwui_k8s.runtime.samplers.pipeline import RowSampler
from tgwui_k8s.runtime.samplers.torch_rows import TorchKernels


class TorchSampler(RowSampler):
    """Samples from torch tensors on the device that holds them.

    Its working memory is a few copies of at most 2**23 logits: some 300 MiB beside the model.
    """

    def __init__(self) -> None:
        super().__init__(TorchKernels())

    @torch.inference_mode()
    def sample(
        self,
        logits: Logits,
        rows: Sequence[SamplingRow],
        indices: Sequence[int],
        guidance_indices: Sequence[int | None],
    ) -> list[SampledToken]:
        """Choose the next token of every row; see `Sampler.sample`."""
        return super().sample(logits, rows, indices, guidance_indices)

    @torch.inference_mode()
    def replay(self, logits: Logits, row: SamplingRow, token_ids: Sequence[int]) -> None:
        """Bring `row.state` to where it was after `token_ids`; see `Sampler.replay`."""
        super().replay(logits, row, token_ids)

    @torch.inference_mode()
    def prompt_logprobs(
        self, logits: Logits, target_token_ids: Sequence[int], num_top: int
    ) -> list[TopLogprobs]:
        """Log probabilities of given tokens, one per row of `logits`."""
        return super().prompt_logprobs(logits, target_token_ids, num_top)
