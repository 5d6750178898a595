"""What an operator can say to vLLM beside the settings that every loader has. No vLLM needed.

The names are vLLM's. Everything else that `AsyncEngineArgs` knows goes into `engine_args`.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from typing import Any

from tgwui_k8s.contract import LoadRequest
from tgwui_k8s.errors import UnsupportedModelError

OPTIONS: dict[str, str] = {
    "tensor_parallel_size": "GPUs that one model lies on.",
    "pipeline_parallel_size": "Groups of GPUs that hold consecutive layers.",
    "distributed_executor_backend": "mp (one node) or ray (several nodes).",
    "gpu_memory_utilization": "Share of the GPU's memory to use, such as 0.9.",
    "quantization": "Method to load the weights with; default: the model's.",
    "kv_cache_dtype": "auto, fp8, ...",
    "enforce_eager": "true: no CUDA graphs.",
    "enable_prefix_caching": "false: compute every prompt anew.",
    "cpu_offload_gb": "Weights to keep in host memory, in GiB.",
    "max_loras": "LoRA adapters in one batch.",
    "engine_args": "Any further arguments of vLLM's engine, as a JSON object.",
}


_OUR_NAMES = {"gpu_memory_fraction": "gpu_memory_utilization"}
"""What a setting of ours is called there."""


def _switch(text: str) -> bool:
    if text.lower() not in ("true", "false"):
        raise ValueError("not true or false")
    return text.lower() == "true"


def _object(text: str) -> dict[str, Any]:
    value = json.loads(text)
    if not isinstance(value, dict):
        raise ValueError("not a JSON object")
    return value


_READERS: dict[str, Callable[[str], Any]] = {
    "tensor_parallel_size": int,
    "pipeline_parallel_size": int,
    "gpu_memory_utilization": float,
    "enforce_eager": _switch,
    "enable_prefix_caching": _switch,
    "cpu_offload_gb": float,
    "max_loras": int,
    "engine_args": _object,
}


def engine_args(request: LoadRequest) -> dict[str, Any]:
    """Keyword arguments of `AsyncEngineArgs`.

    Raises `UnsupportedModelError` for an unknown option or a wrong value.
    """
    arguments: dict[str, Any] = {
        "model": request.model_path,
        # The API process has the tokenizer; only ids come here.
        "skip_tokenizer_init": True,
        "trust_remote_code": request.trust_remote_code,
        "dtype": request.dtype,
        "max_model_len": request.max_model_len,
        "max_num_seqs": request.max_num_seqs,
        "max_num_batched_tokens": request.max_num_batched_tokens,
        # Lower goes first, equals in order of arrival: as in our scheduler.
        "scheduling_policy": "priority",
        "kv_cache_memory_bytes": request.kv_cache_bytes,
        "block_size": request.block_size,
    }
    if request.adapters is not None:
        arguments["enable_lora"] = True
    arguments |= _read(request.options)
    return {name: value for name, value in arguments.items() if value is not None}


def _read(options: Mapping[str, str]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, text in options.items():
        name = key.replace("-", "_")
        name = _OUR_NAMES.get(name, name)
        if name not in OPTIONS:
            raise UnsupportedModelError(
                f"loader 'vLLM' has no option '{key[:100]}'; it has: {', '.join(OPTIONS)}"
            )
        try:
            found[name] = _READERS.get(name, str)(text)
        except ValueError as error:
            raise UnsupportedModelError(f"{key}={text[:100]}: {error}") from None
    more = found.pop("engine_args", {})
    return {**found, **more}
