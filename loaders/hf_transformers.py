"""Transformers: every decoder-only architecture that uses its attention interface, CPU and CUDA.

Reads safetensors (single or sharded) and PyTorch checkpoints. Nothing is written, nothing comes
from the network.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
import transformers
from transformers import AutoTokenizer, PreTrainedConfig, PreTrainedModel

from tgwui_k8s.contract import (
    KVLayout,
    LoadProgress,
    LoadRequest,
    ModelInfo,
    ProgressCallback,
    default_token_budget,
)
from tgwui_k8s.errors import BrokenModelError, UnsupportedModelError
from tgwui_k8s.runtime.device_memory import free_memory
from tgwui_k8s.runtime.kv_layout import KVDemand, group_layers, plan_kv_cache
from tgwui_k8s.runtime.kv_tensors import KVTensors
from tgwui_k8s.runtime.limits import cpu_quota
from tgwui_k8s.runtime.memory import StepSize, check_weights_fit, kv_cache_budget
from tgwui_k8s.runtime.prefetching import prefetch_weights
from tgwui_k8s.runtime.sampler import TorchSampler
from tgwui_k8s.runtime.transformers_config import (
    choose_device,
    choose_dtype,
    find_model_class,
    max_model_len,
    read_config,
)
from tgwui_k8s.runtime.transformers_model import build_model, freeze_rope
from tgwui_k8s.runtime.transformers_runner import TransformersRunner, probe_layers
from tgwui_k8s.storage.identity import eos_token_ids, fingerprint
from tgwui_k8s.storage.model_files import read_json
from tgwui_k8s.storage.weights import WeightFiles, find_weights

_BLOCK_SIZE = 16


@dataclass(frozen=True)
class _Plan:
    """What is decided before the weights are read."""

    config: PreTrainedConfig
    model_class: type[PreTrainedModel]
    weights: WeightFiles
    device: torch.device
    dtype: torch.dtype
    max_model_len: int
    num_batched_tokens: int


class TransformersLoader:
    """contract.Loader for Hugging Face's own format."""

    name: ClassVar[str] = "Transformers"
    options: ClassVar[dict[str, str]] = {}

    def load(self, request: LoadRequest, progress: ProgressCallback) -> TransformersRunner:
        """See `contract.Loader`; the runner samples on its device."""
        plan = _plan(request)
        if plan.device.type == "cpu":
            torch.set_num_threads(request.num_threads or cpu_quota())
        # Reduced precision inside float32 products (TF32, bfloat16) would break exactness.
        torch.set_float32_matmul_precision("highest")
        prefetch_weights(request, plan.weights, progress)
        total = plan.weights.num_bytes
        model = build_model(
            plan.model_class,
            plan.config,
            plan.weights,
            dtype=plan.dtype,
            device=plan.device,
            on_bytes=lambda num_bytes: progress(LoadProgress("loading", num_bytes, total)),
        )
        progress(LoadProgress("loading", total, total))
        freeze_rope(model, plan.max_model_len)
        kv, layout = _make_kv_cache(model, plan, request)
        # On a CPU the host's own sampler is faster than torch's operators.
        sampler = None if plan.device.type == "cpu" else TorchSampler()
        return TransformersRunner(model, kv, layout, _describe(model, plan, request), sampler)


def _plan(request: LoadRequest) -> _Plan:
    folder = request.path
    if unknown := sorted(set(request.options) - set(TransformersLoader.options)):
        raise UnsupportedModelError(f"the Transformers loader has no option '{unknown[0]}'")
    config = read_config(folder, trust_remote_code=request.trust_remote_code)
    model_class = find_model_class(folder, config, trust_remote_code=request.trust_remote_code)
    device = choose_device(request)
    dtype = choose_dtype(config, request, device)
    weights = find_weights(folder)
    check_weights_fit(_bytes_in(dtype, weights), free_memory(request, device))
    return _Plan(
        config=config,
        model_class=model_class,
        weights=weights,
        device=device,
        dtype=dtype,
        max_model_len=max_model_len(config, request.max_model_len),
        num_batched_tokens=request.max_num_batched_tokens or default_token_budget(device.type),
    )


def _bytes_in(dtype: torch.dtype, weights: WeightFiles) -> int:
    """Size of the weights in memory; a pickled checkpoint's is taken as it is."""
    if not weights.tensors:
        return weights.num_bytes
    return sum(
        entry.num_bytes * dtype.itemsize // stored
        if (stored := entry.float_bytes)
        else entry.num_bytes
        for entry in weights.tensors.values()
    )


def _make_kv_cache(
    model: PreTrainedModel, plan: _Plan, request: LoadRequest
) -> tuple[KVTensors, KVLayout]:
    block_size = request.block_size or _BLOCK_SIZE
    layers = probe_layers(model, plan.device, plan.max_model_len)
    groups = group_layers(layers, block_size=block_size, element_bytes=plan.dtype.itemsize)
    demand = KVDemand(
        max_model_len=plan.max_model_len,
        max_num_seqs=request.max_num_seqs,
        max_num_batched_tokens=plan.num_batched_tokens,
        block_size=block_size,
    )
    text_config = model.config.get_text_config()
    step = StepSize(
        num_tokens=max(plan.num_batched_tokens, request.max_num_seqs),
        num_sequences=request.max_num_seqs,
        hidden_size=text_config.hidden_size,
        intermediate_size=_intermediate_size(text_config),
        vocab_size=text_config.vocab_size,
        element_bytes=plan.dtype.itemsize,
    )
    budget = kv_cache_budget(request, free_memory(request, plan.device), step.workspace_bytes)
    layout = plan_kv_cache(groups, demand, budget, is_capped=request.kv_cache_bytes is None)
    return KVTensors(layers, groups, layout, dtype=plan.dtype, device=plan.device), layout


def _intermediate_size(config: PreTrainedConfig) -> int:
    """Width of the feed-forward layer; four times hidden where the configuration has no word."""
    for name in ("intermediate_size", "ffn_dim", "n_inner", "ffn_hidden_size"):
        size = getattr(config, name, None)
        if isinstance(size, int):
            return size
    return 4 * config.hidden_size


def _describe(model: PreTrainedModel, plan: _Plan, request: LoadRequest) -> ModelInfo:
    parameters = list(model.parameters())
    dtype = str(plan.dtype).removeprefix("torch.")
    numerics = (
        f"{TransformersLoader.name} {transformers.__version__}",
        f"torch {torch.__version__}",
        dtype,
        _hardware(plan.device),
    )
    return ModelInfo(
        loader=TransformersLoader.name,
        architecture=type(model).__name__,
        dtype=dtype,
        device=str(plan.device),
        max_model_len=plan.max_model_len,
        vocab_size=model.get_output_embeddings().weight.shape[0],
        eos_token_ids=eos_token_ids(request.path),
        num_parameters=sum(parameter.numel() for parameter in parameters),
        weight_bytes=sum(parameter.nbytes for parameter in parameters),
        fingerprint=fingerprint(
            plan.weights.files, read_json(request.path / "config.json"), numerics
        ),
        tokenizer_json=_convert_tokenizer(request),
    )


def _hardware(device: torch.device) -> str:
    if device.type == "cpu":
        return torch.backends.cpu.get_cpu_capability()
    return torch.cuda.get_device_name(device)


def _convert_tokenizer(request: LoadRequest) -> bytes | None:
    """The tokenizer in the `tokenizers` library's form, where the folder has it in another."""
    if (request.path / "tokenizer.json").is_file():
        return None
    try:
        tokenizer = AutoTokenizer.from_pretrained(
            request.path, trust_remote_code=request.trust_remote_code, local_files_only=True
        )
        backend = tokenizer.backend_tokenizer
    except Exception as error:  # tokenizer classes raise what they like
        reason = str(error).splitlines()[0][:200] if str(error) else type(error).__name__
        raise BrokenModelError(
            f"{request.path} has no tokenizer.json, and none could be made of its other files "
            f"({reason})"
        ) from error
    return backend.to_str().encode()
