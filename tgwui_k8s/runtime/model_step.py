"""One step as a model takes it, and who makes it of a batch.

The seam behind which KV caches are written and read: `paged_attention` does it in PyTorch's own
operators, `cuda.attention` in kernels of ours.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch

from tgwui_k8s.contract import Batch
from tgwui_k8s.runtime.transfers import to_device
from tgwui_k8s.runtime.transformers_attention import AttentionBackend


@dataclass(frozen=True, slots=True)
class ModelStep:
    """All tokens of a step in one row, and the attention that knows whose they are.

    `token_ids` and `positions` are [num_tokens]; `logit_rows` are the tokens whose logits are
    wanted, [num_logits]. Integers on the model's device.
    """

    token_ids: torch.Tensor
    positions: torch.Tensor
    logit_rows: torch.Tensor
    attention: AttentionBackend

    @classmethod
    def of(cls, batch: Batch, attention: AttentionBackend, device: torch.device) -> ModelStep:
        """The tokens of a batch, uploaded one list at a time."""
        token_ids: list[int] = []
        positions: list[int] = []
        logit_rows: list[int] = []
        for scheduled in batch.sequences:
            token_ids += scheduled.token_ids
            positions += range(scheduled.start, scheduled.start + len(scheduled.token_ids))
            logit_rows += range(len(token_ids) - scheduled.num_logits, len(token_ids))

        def upload(numbers: list[int]) -> torch.Tensor:
            return to_device(numbers, torch.int64, device)

        return cls(upload(token_ids), upload(positions), upload(logit_rows), attention)

    def fill_in(self, previous: torch.Tensor) -> None:
        """Put `previous[i]` where the batch says `~i`, in place: a graph may read it there."""
        known = self.token_ids >= 0
        chosen = previous[torch.where(known, 0, ~self.token_ids)]
        self.token_ids.copy_(torch.where(known, self.token_ids, chosen))


class PagedBackend(Protocol):
    """Plans steps over a paged KV cache. One per runner."""

    def begin_step(self, batch: Batch) -> ModelStep:
        """Work out, once for all layers, where a batch is written and what it attends to.

        The step is good until the next one begins.
        """
        ...
