"""Transformers: every decoder-only architecture that uses its attention interface, CPU and CUDA."""

from __future__ import annotations

from typing import ClassVar

from tgwui_k8s.contract import LoadRequest, ModelRunner, ProgressCallback
from tgwui_k8s.runtime.tensor_parallel.loading import load_on_ranks
from tgwui_k8s.runtime.tensor_parallel.ranks import OPTION, num_ranks
from tgwui_k8s.runtime.transformers_loading import OPTIONS, load_runner


class TransformersLoader:
    """contract.Loader for Hugging Face's own format."""

    name: ClassVar[str] = "Transformers"
    options: ClassVar[dict[str, str]] = {
        **OPTIONS,
        "weights": "int8 or int4: rounded at load, for a half or a quarter of the memory; the same "
        "as --load-in-8bit and --load-in-4bit.",
        OPTION: "GPUs that share the model's layers; the same as --tensor-parallel-size.",
    }

    def load(self, request: LoadRequest, progress: ProgressCallback) -> ModelRunner:
        """See `contract.Loader`."""
        load = load_on_ranks if num_ranks(request.options) > 1 else load_runner
        return load(request, progress, loader=self.name, options=self.options)
