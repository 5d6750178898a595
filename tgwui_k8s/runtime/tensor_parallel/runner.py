"""A `ModelRunner` whose model lies on several ranks: each step is computed by all of them."""

from __future__ import annotations

from collections.abc import Callable

from tgwui_k8s.contract import Batch, KVLayout, Logits, ModelInfo, ModelRunner, Sampler
from tgwui_k8s.runtime.tensor_parallel.messages import Execute, WarmUp
from tgwui_k8s.runtime.tensor_parallel.workers import Workers


class TensorParallelRunner:
    """Rank 0's runner, with the other ranks in step. Only this one samples."""

    def __init__(self, runner: ModelRunner, workers: Workers, leave: Callable[[], None]) -> None:
        """`leave` ends this rank's part in the process group."""
        self.info: ModelInfo = runner.info
        self.layout: KVLayout = runner.layout
        self.sampler: Sampler | None = runner.sampler
        self._runner = runner
        self._workers = workers
        self._leave = leave

    def execute(self, batch: Batch) -> Logits:
        """See `contract.ModelRunner`; every rank gets the logits, and this one's are returned."""
        self._workers.tell(Execute(batch))
        return self._runner.execute(batch)

    def warm_up(self) -> None:
        """See `contract.ModelRunner`."""
        self._workers.tell(WarmUp())
        self._runner.warm_up()

    def close(self) -> None:
        """End the other ranks, and drop this one's share."""
        self._workers.close()
        self._runner.close()
        self._leave()
