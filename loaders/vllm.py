"""The `vLLM` loader: vLLM's own engine behind this API, for the models that it runs best.

vLLM schedules, samples and caches by itself, over several GPUs and nodes; routes, keys, templates,
streams, metrics and logs are this server's as with any other loader.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any, ClassVar

from tgwui_k8s.contract import (
    Backend,
    Capabilities,
    LoadProgress,
    LoadRequest,
    ModelInfo,
    ProgressCallback,
)
from tgwui_k8s.errors import StartupError
from tgwui_k8s.runtime.prefetching import reading_ahead
from tgwui_k8s.runtime.vllm.options import OPTIONS, engine_args
from tgwui_k8s.runtime.vllm.sampling import UNSUPPORTED
from tgwui_k8s.storage.identity import eos_token_ids, fingerprint
from tgwui_k8s.storage.model_files import ModelFiles
from tgwui_k8s.storage.weights import WeightFiles, find_weights

_ENVIRONMENT = {
    # Lines of vLLM's own processes come through our log as they are; it shall not format them.
    "VLLM_CONFIGURE_LOGGING": "0",
    "VLLM_NO_USAGE_STATS": "1",
    "HF_HUB_OFFLINE": "1",
}


class VLLMLoader:
    """contract.Loader for vLLM's `AsyncLLM`."""

    name: ClassVar[str] = "vLLM"
    options: ClassVar[dict[str, str]] = OPTIONS

    def load(self, request: LoadRequest, progress: ProgressCallback) -> Backend:
        """Start vLLM's processes and wait until the model is loaded and warm.

        Raises a `StartupError` with vLLM's reason; its log lines before say more.
        """
        arguments = engine_args(request)
        weights = find_weights(request.path)
        total = weights.num_bytes
        for name, value in _ENVIRONMENT.items():
            os.environ.setdefault(name, value)
        if request.num_threads is not None:
            os.environ.setdefault("OMP_NUM_THREADS", str(request.num_threads))

        # vLLM takes seconds to import, in which its weights can be read.
        with reading_ahead(request, weights, progress) as note:
            note(LoadProgress("loading", 0, total))
            from tgwui_k8s.runtime.vllm.backend import VLLMBackend
            from tgwui_k8s.runtime.vllm.stats import StatsCollector

            collector = StatsCollector()
            engine = _start(arguments, collector)
        backend = VLLMBackend(engine, _describe(request, engine.vllm_config, weights), collector)
        for name, folder in (request.adapters or {}).items():
            backend.load_adapter(name, Path(folder))
        progress(LoadProgress("loading", total, total))
        return backend


def _start(arguments: dict[str, Any], collector: Any) -> Any:
    from vllm import AsyncEngineArgs
    from vllm.v1.engine.async_llm import AsyncLLM

    try:
        return AsyncLLM.from_engine_args(
            AsyncEngineArgs(**arguments), stat_loggers=[collector.attach]
        )
    except (ValueError, TypeError, RuntimeError, NotImplementedError) as error:
        reason = " ".join(str(error).split())[:500]
        raise StartupError(
            f"vLLM cannot start with this model or these options: {reason}"
        ) from error


def _describe(request: LoadRequest, config: Any, weights: WeightFiles) -> ModelInfo:
    from vllm import __version__

    model = config.model_config
    parallel = config.parallel_config
    dtype = str(model.dtype).removeprefix("torch.")
    return ModelInfo(
        loader=VLLMLoader.name,
        architecture=model.architecture,
        dtype=dtype,
        device=config.device_config.device_type,
        max_model_len=model.max_model_len,
        vocab_size=model.get_vocab_size(),
        eos_token_ids=eos_token_ids(request.path),
        weight_bytes=weights.num_bytes,
        quantization=model.quantization,
        fingerprint=fingerprint(
            weights.files,
            ModelFiles.read(request.path).config,
            (f"vLLM {__version__}", dtype, str(sorted(request.options.items()))),
        ),
        capabilities=Capabilities(
            guidance=False,
            resume=False,
            unsupported_params=UNSUPPORTED,
            adapters=request.adapters is not None,
        ),
        details={
            "vllm": __version__,
            "tensor_parallel_size": parallel.tensor_parallel_size,
            "pipeline_parallel_size": parallel.pipeline_parallel_size,
        },
    )
