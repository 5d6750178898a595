"""The paged backend for GPUs: a step is planned on the host and uploaded in one copy. No masks, no
padding, nothing that waits for the device.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch

from tgwui_k8s.contract import Batch
from tgwui_k8s.runtime.cuda.step_numbers import Sections, StepNumbers, WorkSize, plan_step
from tgwui_k8s.runtime.cuda.tiling import Tiling
from tgwui_k8s.runtime.kv_tensors import KVTensors
from tgwui_k8s.runtime.model_step import ModelStep
from tgwui_k8s.runtime.transformers_attention import AttentionBackend

MakeAttention = Callable[[KVTensors, Sequence[Tiling], torch.Tensor, Sections], AttentionBackend]
"""Makes the attention of one step over its numbers on the device, which lie in these sections."""


class NumberedBackend:
    """Plans steps in numbers. See `PagedBackend` and `decode_graphs.FixedSteps`."""

    def __init__(
        self,
        kv: KVTensors,
        windows: Sequence[int | None],
        block_size: int,
        make_attention: MakeAttention,
    ) -> None:
        self._kv = kv
        self._make_attention = make_attention
        self._block_size = block_size
        self._tilings = [
            Tiling.of(
                (kv.shapes[layer] for layer, owner in kv.group_of_layer.items() if owner == group),
                window,
                kv.dtype.itemsize,
            )
            for group, window in enumerate(windows)
        ]
        self._fixed = torch.empty(0, dtype=torch.int32, device=kv.device)

    def begin_step(self, batch: Batch) -> ModelStep:
        """See `PagedBackend.begin_step`."""
        numbers = self._plan(batch)
        sections = numbers.sections
        staged = self._stage(numbers, sections)
        return self._step(staged.to(self._kv.device, non_blocking=True), sections)

    def reserve(self, num_rows: int, max_model_len: int) -> None:
        """See `FixedSteps.reserve`: every row may have a table of its own, of full length."""
        num_blocks = num_rows * -(-max_model_len // self._block_size) * len(self._tilings)
        size = self._fixed_sections(num_rows).blocks + num_blocks
        self._fixed = torch.zeros(size, dtype=torch.int32, device=self._kv.device)

    def fixed_step(self, num_rows: int) -> ModelStep:
        """A step of `num_rows` decodes whose numbers always lie in the same place."""
        return self._step(self._fixed, self._fixed_sections(num_rows))

    def fill(self, batch: Batch, num_rows: int) -> None:
        """Put a batch of up to `num_rows` decodes where `fixed_step` looks."""
        staged = self._stage(self._plan(batch), self._fixed_sections(num_rows))
        self._fixed[: len(staged)].copy_(staged, non_blocking=True)

    def _plan(self, batch: Batch) -> StepNumbers:
        return plan_step(batch, self._tilings, self._block_size)

    def _fixed_sections(self, num_rows: int) -> Sections:
        works = [WorkSize(0, num_rows + tiling.num_spans, num_rows) for tiling in self._tilings]
        return Sections.of(num_rows, num_rows, works)

    def _stage(self, numbers: StepNumbers, sections: Sections) -> torch.Tensor:
        """The numbers in host memory that a GPU can read by itself.

        The allocator of such memory gives none of it away before the copies from it are done, so
        the host may plan the next step while this one waits.
        """
        staged = torch.empty(
            numbers.size_in(sections),
            dtype=torch.int32,
            pin_memory=self._kv.device.type == "cuda",
        )
        numbers.write(staged.numpy(), sections)
        return staged

    def _step(self, numbers: torch.Tensor, sections: Sections) -> ModelStep:
        return ModelStep(
            token_ids=numbers[sections.token_ids],
            positions=numbers[sections.positions],
            logit_rows=numbers[sections.logit_rows],
            attention=self._make_attention(self._kv, self._tilings, numbers, sections),
        )
