"""AutoGPTQ: GPTQ checkpoints, 4 bits or 8, with and without act-order, on CPU and CUDA.

The model is Transformers', its linear layers are ours (`runtime/quantized`): weights stay packed in
memory, and batching, sampling and prefix cache are the engine's as ever.
"""

from __future__ import annotations

from typing import ClassVar

from tgwui_k8s.contract import LoadRequest, ProgressCallback
from tgwui_k8s.runtime.quantized.schemes import GptqScheme
from tgwui_k8s.runtime.transformers_loading import OPTIONS, load_runner
from tgwui_k8s.runtime.transformers_runner import TransformersRunner


class GptqLoader:
    """contract.Loader for GPTQ."""

    name: ClassVar[str] = "AutoGPTQ"
    options: ClassVar[dict[str, str]] = OPTIONS

    def load(self, request: LoadRequest, progress: ProgressCallback) -> TransformersRunner:
        """See `contract.Loader`."""
        return load_runner(
            request,
            progress,
            loader=self.name,
            options=self.options,
            read_scheme=GptqScheme.from_config,
        )
