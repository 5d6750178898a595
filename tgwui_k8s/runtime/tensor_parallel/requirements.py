"""What a model and a machine must have to be shared among several ranks; checked by rank 0 alone.

What is refused here is refused before a process is started.
"""

from __future__ import annotations

import torch
from torch import distributed
from transformers import PreTrainedConfig

from tgwui_k8s.contract import LoadRequest
from tgwui_k8s.errors import UnsupportedModelError
from tgwui_k8s.storage.weights import WeightFiles

_FLAG = "--tensor-parallel-size"


def check_request(request: LoadRequest, size: int, device: torch.device) -> None:
    """Raise `UnsupportedModelError` for settings or a machine that do not allow `size` ranks."""
    if distributed.is_initialized():
        raise UnsupportedModelError(
            f"this process holds a model with {_FLAG} already; close it before the next one"
        )
    if request.adapters is not None:
        raise UnsupportedModelError(
            f"LoRA adapters and {_FLAG} do not go together with this loader; use --loader vLLM, or "
            "merge the adapter into the model's weights"
        )
    if request.options.get("weights"):
        raise UnsupportedModelError(
            f"--load-in-8bit and --load-in-4bit do not go together with {_FLAG}; leave one out"
        )
    num_gpus = torch.cuda.device_count()
    if device.type == "cuda" and size > num_gpus:
        raise UnsupportedModelError(
            f"{_FLAG} {size}: PyTorch sees {num_gpus} GPU{'s' * (num_gpus > 1)}; lower it, or give "
            "the pod more GPUs"
        )
    if device.type == "cpu" and num_gpus:
        raise UnsupportedModelError(
            f"{_FLAG} with --device cpu: hide the GPUs from the server (CUDA_VISIBLE_DEVICES=)"
        )


def check_model(config: PreTrainedConfig, weights: WeightFiles, size: int) -> None:
    """Raise `UnsupportedModelError` for a model that cannot be cut into `size` equal parts."""
    text_config = config.get_text_config()
    if not getattr(text_config, "base_model_tp_plan", None):
        raise UnsupportedModelError(
            f"Transformers has no plan for {_FLAG} of '{config.model_type}' models; use --loader "
            "vLLM for it"
        )
    if not weights.tensors:
        raise UnsupportedModelError(f"{_FLAG} needs the weights as safetensors; convert them")
    for name in ("num_attention_heads", "num_key_value_heads"):
        heads = getattr(text_config, name, None) or size
        if heads % size:
            raise UnsupportedModelError(
                f"{_FLAG} {size} does not divide the model's {name} of {heads}; "
                f"what does: {', '.join(map(str, _divisors(text_config)))}"
            )


def _divisors(config: PreTrainedConfig) -> list[int]:
    heads = config.num_attention_heads
    kv_heads = getattr(config, "num_key_value_heads", None) or heads
    return [size for size in range(1, kv_heads + 1) if heads % size == 0 and kv_heads % size == 0]
