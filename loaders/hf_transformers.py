"""Transformers: every decoder-only architecture that uses its attention interface, CPU and CUDA."""

from __future__ import annotations

from typing import ClassVar

from tgwui_k8s.contract import LoadRequest, ProgressCallback
from tgwui_k8s.runtime.transformers_loading import OPTIONS, load_runner
from tgwui_k8s.runtime.transformers_runner import TransformersRunner


class TransformersLoader:
    """contract.Loader for Hugging Face's own format."""

    name: ClassVar[str] = "Transformers"
    options: ClassVar[dict[str, str]] = {
        **OPTIONS,
        "weights": "int8 or int4: rounded at load, for a half or a quarter of the memory; the same "
        "as --load-in-8bit and --load-in-4bit.",
    }

    def load(self, request: LoadRequest, progress: ProgressCallback) -> TransformersRunner:
        """See `contract.Loader`."""
        return load_runner(request, progress, loader=self.name, options=self.options)
