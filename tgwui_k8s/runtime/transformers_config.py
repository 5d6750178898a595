"""What a model folder's configuration says: can we run it, how long, in which type, until when.

Everything here is decided before a weight is read.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedConfig, PreTrainedModel

from tgwui_k8s.contract import LoadRequest
from tgwui_k8s.errors import BrokenModelError, UnsupportedModelError
from tgwui_k8s.runtime.context_length import choose_max_model_len
from tgwui_k8s.runtime.limits import cpu_flags
from tgwui_k8s.runtime.remote_code import load_remote_class, prepare_remote_code
from tgwui_k8s.storage.model_files import read_json

_FAST_BF16_FLAGS = frozenset({"avx512_bf16", "amx_bf16", "bf16"})
"""x86 and, without a prefix, Arm."""

_ATTENTION_LAYERS = frozenset({"full_attention", "sliding_attention"})


def read_config(folder: Path, *, trust_remote_code: bool) -> PreTrainedConfig:
    """The configuration of a model folder, by Transformers' classes.

    Raises `BrokenModelError` for a config.json that is missing or malformed and
    `UnsupportedModelError` for an architecture that Transformers does not know.
    """
    content = read_json(folder / "config.json")
    model_type = content.get("model_type")
    if not isinstance(model_type, str):
        raise BrokenModelError(f"{folder / 'config.json'} names no model_type")
    if trust_remote_code:
        prepare_remote_code()
    try:
        return AutoConfig.from_pretrained(
            folder, trust_remote_code=trust_remote_code, local_files_only=True
        )
    except Exception as error:  # configuration classes raise what they like
        reason = str(error).splitlines()[0][:200] if str(error) else type(error).__name__
        if "auto_map" in content and not trust_remote_code:
            raise UnsupportedModelError(
                f"{folder.name} ('{model_type}') comes with Python code of its own; "
                "--trust-remote-code runs it, if you trust the folder"
            ) from error
        if "does not recognize this architecture" in str(error):
            raise UnsupportedModelError(
                f"the installed Transformers does not know the architecture '{model_type}' of "
                f"{folder.name}; upgrade transformers or use another loader"
            ) from error
        raise BrokenModelError(f"{folder / 'config.json'}: {reason}") from error


def drop_quantization(config: PreTrainedConfig) -> None:
    """Keep Transformers from quantizing by itself: the loader does, or reads what was."""
    for part in (config, config.get_text_config()):
        if hasattr(part, "quantization_config"):
            del part.quantization_config


def find_model_class(
    folder: Path, config: PreTrainedConfig, *, trust_remote_code: bool
) -> type[PreTrainedModel]:
    """The class that generates with this configuration, known to run on our attention.

    Raises `UnsupportedModelError`.
    """
    auto_map = getattr(config, "auto_map", None) or {}
    reference = auto_map.get("AutoModelForCausalLM")
    if trust_remote_code and reference:
        model_class = load_remote_class(folder, reference)
    elif type(config) in AutoModelForCausalLM._model_mapping:
        model_class = AutoModelForCausalLM._model_mapping[type(config)]
    elif reference:
        raise UnsupportedModelError(
            f"{folder.name} comes with Python code of its own; --trust-remote-code runs it, if you "
            "trust the folder"
        )
    else:
        raise UnsupportedModelError(
            f"'{config.model_type}' models do not generate text from text alone; this server runs "
            "decoder-only language models"
        )
    _refuse_unsupported(config, model_class)
    return model_class


def _refuse_unsupported(config: PreTrainedConfig, model_class: type[PreTrainedModel]) -> None:
    name = model_class.__name__
    if not model_class._supports_attention_backend:
        raise UnsupportedModelError(
            f"{name} does not use Transformers' attention interface, which this loader needs; use "
            "a GGUF of the model with llama.cpp, or the vLLM loader"
        )
    text_config = config.get_text_config()
    for part in (config, text_config):
        quantization = getattr(part, "quantization_config", None)
        if quantization:
            method = quantization.get("quant_method") if isinstance(quantization, dict) else None
            raise UnsupportedModelError(
                f"the Transformers loader runs unquantized weights, not "
                f"{method or 'quantized ones'}; choose the loader of that format"
            )
    layer_types = set(getattr(text_config, "layer_types", None) or ())
    if others := layer_types - _ATTENTION_LAYERS:
        raise UnsupportedModelError(
            f"{name} has layers that keep no KV cache of tokens ({', '.join(sorted(others))}), "
            "which this loader does not support; use the vLLM loader or a GGUF with llama.cpp"
        )
    is_bidirectional = getattr(text_config, "use_bidirectional_attention", False)
    if config.is_encoder_decoder or is_bidirectional or not getattr(config, "is_causal", True):
        raise UnsupportedModelError(f"{name} is not a causal decoder, which this loader needs")
    if getattr(text_config, "num_kv_shared_layers", 0):
        raise UnsupportedModelError(
            f"{name} shares KV between layers, which this loader does not support; use the vLLM "
            "loader or a GGUF with llama.cpp"
        )


def choose_device(request: LoadRequest) -> torch.device:
    """Where to run. Raises `UnsupportedModelError` for CUDA without a CUDA device."""
    if request.device == "cpu" or (request.device == "auto" and not torch.cuda.is_available()):
        return torch.device("cpu")
    if not torch.cuda.is_available():
        raise UnsupportedModelError(
            "--device cuda: PyTorch sees no CUDA device; use --device cpu, or check the driver and "
            "that the installed torch is a CUDA build"
        )
    return torch.device("cuda", torch.cuda.current_device())


def choose_dtype(
    config: PreTrainedConfig, request: LoadRequest, device: torch.device
) -> torch.dtype:
    """The type to compute in.

    "auto" is the checkpoint's own on a GPU. On a CPU it is bfloat16 for 16-bit checkpoints where
    the processor multiplies bfloat16 in hardware (AVX512-BF16, AMX, Arm's bf16), float32 otherwise.
    """
    if request.dtype != "auto":
        return getattr(torch, request.dtype)
    stored = getattr(config, "dtype", None) or getattr(config.get_text_config(), "dtype", None)
    is_half = stored in (torch.float16, torch.bfloat16)
    if device.type != "cpu":
        return torch.float32 if stored is None else stored
    return torch.bfloat16 if is_half and cpu_flags() & _FAST_BF16_FLAGS else torch.float32


def max_model_len(config: PreTrainedConfig, requested: int | None) -> int:
    """The longest sequence; see `context_length`."""
    text_config = config.get_text_config()
    trained = getattr(text_config, "max_position_embeddings", None)
    return choose_max_model_len(trained, _rope_parameters(text_config), requested)


def _rope_parameters(config: PreTrainedConfig) -> list[dict[str, Any]]:
    """RoPE parameters; models with several kinds of layer have one set for each."""
    parameters = getattr(config, "rope_parameters", None) or {}
    nested = [value for value in parameters.values() if isinstance(value, dict)]
    return nested or [parameters]
