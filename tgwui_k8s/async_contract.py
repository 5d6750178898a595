"""What a runner on a device provides beyond `contract`, so that the engine can run a step ahead.

While a device computes one step, the host prepares and launches the next: the tokens that it is
made of stay on the device, and the host reads them a step later (`engine.core`).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol, runtime_checkable

from tgwui_k8s.contract import Batch, Logits, ModelRunner, SampledToken, Sampler, SamplingRow
from tgwui_k8s.sampling import SamplingParams


class PendingTokens(Protocol):
    """The choice for some rows, made where the logits lie and on its way to the host."""

    @property
    def token_ids(self) -> Any:
        """int64 [rows], where the logits lie."""
        ...

    def read(self) -> list[SampledToken]:
        """Wait for the choice, and try the rows again that have none; called once."""
        ...


@runtime_checkable
class AsyncSampler(Sampler, Protocol):
    """A sampler that can choose before anybody knows what it chose the step before."""

    def can_run_ahead(self, params: SamplingParams) -> bool:
        """False where a choice depends on the tokens before it."""
        ...

    def launch(
        self,
        logits: Logits,
        rows: Sequence[SamplingRow],
        indices: Sequence[int],
        guidance_indices: Sequence[int | None],
    ) -> PendingTokens:
        """Like `sample`, without waiting; for rows that `can_run_ahead`.

        Of `output_token_ids`, only how many there are is looked at.
        """
        ...


@runtime_checkable
class AsyncRunner(ModelRunner, Protocol):
    """A runner on a device that computes by itself, in the order in which steps are launched.

    Its sampler is an `AsyncSampler`, and the engine prepares the next step while one is computed.
    """

    @property
    def runs_ahead(self) -> bool:
        """False where the host computes: there is nothing to overlap with."""
        ...

    def launch(self, batch: Batch, previous: Any) -> Logits:
        """Like `execute`, without waiting for the device.

        `previous` are the `PendingTokens.token_ids` of the step before: what the negative token
        ids of the batch stand for. None where there are none. The device may still be at the step
        before: what that reads must not be overwritten from the host, and its logits stay as they
        are.
        """
        ...
