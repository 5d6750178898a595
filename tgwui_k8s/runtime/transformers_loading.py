"""From a model folder to a runner over Transformers' model: what the loaders that use it share.

Reads safetensors (single or sharded) and PyTorch checkpoints, weights plain or quantized. Nothing
is written, nothing comes from the network.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import transformers
from transformers import AutoTokenizer, PreTrainedConfig, PreTrainedModel

from tgwui_k8s.contract import (
    Capabilities,
    KVLayout,
    LoadProgress,
    LoadRequest,
    ModelInfo,
    ProgressCallback,
    default_token_budget,
)
from tgwui_k8s.errors import BrokenModelError, StartupError, UnsupportedModelError
from tgwui_k8s.runtime.cuda.decode_graphs import graph_sizes, graphs_bytes
from tgwui_k8s.runtime.cuda.fused_norms import fuse_norms
from tgwui_k8s.runtime.device_memory import GPU_MEMORY_FRACTION, free_memory, keep_within_limit
from tgwui_k8s.runtime.kv_layout import KVDemand, group_layers, plan_kv_cache
from tgwui_k8s.runtime.kv_tensors import KVTensors
from tgwui_k8s.runtime.limits import AvailableMemory, cpu_quota
from tgwui_k8s.runtime.memory import StepSize, check_weights_fit, kv_cache_budget
from tgwui_k8s.runtime.paged_backend import uses_kernels
from tgwui_k8s.runtime.prefetching import reading_ahead
from tgwui_k8s.runtime.quantized.linear import choose_product, expands_weights
from tgwui_k8s.runtime.quantized.model import Quantization, linear_layers, quantized_layers
from tgwui_k8s.runtime.quantized.schemes import (
    QuantizationScheme,
    RoundingScheme,
    rounding_group_size,
)
from tgwui_k8s.runtime.sampler import TorchSampler
from tgwui_k8s.runtime.tensor_parallel.ranks import ALONE, Ranks
from tgwui_k8s.runtime.transformers_config import (
    choose_device,
    choose_dtype,
    drop_quantization,
    find_model_class,
    max_model_len,
    read_config,
)
from tgwui_k8s.runtime.transformers_model import Placement, build_model, freeze_rope
from tgwui_k8s.runtime.transformers_runner import TransformersRunner, probe_layers
from tgwui_k8s.storage.adapter_files import AdapterFiles
from tgwui_k8s.storage.identity import eos_token_ids, fingerprint
from tgwui_k8s.storage.model_files import ModelFiles, read_json
from tgwui_k8s.storage.weights import WeightFiles, find_weights

OPTIONS = {GPU_MEMORY_FRACTION: "Share of the GPU's memory to use; also --gpu-memory-fraction."}
"""Options of every loader that uses this module."""

ReadScheme = Callable[[Path, Mapping[str, Any]], QuantizationScheme]
"""Makes a scheme of a model folder and what it says of its quantization."""

_BLOCK_SIZE = 16
_WEIGHT_BITS = {"int8": 8, "int4": 4}


@dataclass(frozen=True)
class _Plan:
    """What is decided before the weights are read."""

    loader: str
    config: PreTrainedConfig
    model_class: type[PreTrainedModel]
    weights: WeightFiles
    scheme: QuantizationScheme | None
    device: torch.device
    dtype: torch.dtype
    max_model_len: int
    num_batched_tokens: int
    num_threads: int
    ranks: Ranks
    graph_sizes: tuple[int, ...]
    """Steps to record, where they can be; none where several ranks add up what they computed."""


def load_runner(
    request: LoadRequest,
    progress: ProgressCallback,
    *,
    loader: str,
    options: Collection[str] = (),
    read_scheme: ReadScheme | None = None,
    ranks: Ranks = ALONE,
) -> TransformersRunner:
    """Load the model for `loader`, which has these `options`; the runner samples on its device.

    `read_scheme` is for checkpoints with quantized weights. Of several `ranks`, which have met,
    each loads its share and all plan the same cache. Raises a `StartupError` that names the file or
    setting and the remedy.
    """
    check_options(request, loader, options)
    plan = _plan(request, loader, read_scheme, ranks)
    if plan.device.type == "cpu":
        torch.set_num_threads(plan.num_threads)
    keep_within_limit(request, plan.device)
    # Reduced precision inside float32 products (TF32, bfloat16) would break exactness.
    torch.set_float32_matmul_precision("highest")
    total = plan.weights.num_bytes
    with reading_ahead(request, plan.weights, progress) as note:
        model = build_model(
            plan.model_class,
            plan.config,
            plan.weights,
            dtype=plan.dtype,
            placement=Placement(plan.device, ranks.size),
            on_bytes=lambda num_bytes: note(LoadProgress("loading", num_bytes, total)),
            quantization=_quantization(plan),
        )
    progress(LoadProgress("loading", total, total))
    stretches_rope = freeze_rope(model, plan.max_model_len)
    if plan.device.type == "cuda":
        fuse_norms(model)
    kv, layout = _make_kv_cache(model, plan, request)
    # On a CPU the host's own sampler is faster than torch's operators.
    sampler = None if plan.device.type == "cpu" else TorchSampler()
    info = _describe(model, plan, request, stretches_rope=stretches_rope)
    return TransformersRunner(model, kv, layout, info, sampler, graph_sizes=plan.graph_sizes)


def check_options(request: LoadRequest, loader: str, options: Collection[str]) -> None:
    """Raise `UnsupportedModelError` for an option that is none of the loader's."""
    if unknown := sorted(set(request.options) - set(options)):
        raise UnsupportedModelError(f"loader '{loader}' has no option '{unknown[0][:100]}'")


def _plan(request: LoadRequest, loader: str, read_scheme: ReadScheme | None, ranks: Ranks) -> _Plan:
    folder = request.path
    config = read_config(folder, trust_remote_code=request.trust_remote_code)
    weights = find_weights(folder)
    scheme: QuantizationScheme | None = None
    if read_scheme is not None:
        scheme = _read_scheme(folder, loader, read_scheme)
        drop_quantization(config)
    model_class = find_model_class(folder, config, trust_remote_code=request.trust_remote_code)
    if weight_type := request.options.get("weights"):
        scheme = _rounding_scheme(model_class, config, _weight_bits(weight_type))
    device = choose_device(request)
    dtype = choose_dtype(config, request, device)
    num_bytes = _bytes_in(dtype, weights, scheme, device) // ranks.size
    check_weights_fit(num_bytes, _free_memory(request, device, ranks))
    return _Plan(
        loader=loader,
        config=config,
        model_class=model_class,
        weights=weights,
        scheme=scheme,
        device=device,
        dtype=dtype,
        max_model_len=max_model_len(config, request.max_model_len),
        num_batched_tokens=request.max_num_batched_tokens or default_token_budget(device.type),
        num_threads=max(1, (request.num_threads or cpu_quota()) // ranks.size),
        ranks=ranks,
        graph_sizes=graph_sizes(request.max_num_seqs) if ranks.size == 1 else (),
    )


def _free_memory(request: LoadRequest, device: torch.device, ranks: Ranks) -> AvailableMemory:
    """What is free for this rank; on a CPU all of them share what there is."""
    free = free_memory(request, device)
    num_sharing = ranks.size if device.type == "cpu" else 1
    return AvailableMemory(free.num_bytes // num_sharing, free.is_limited)


# -------------------------------------------------------------------------------- quantization


def _read_scheme(folder: Path, loader: str, read_scheme: ReadScheme) -> QuantizationScheme:
    description = ModelFiles.read(folder).quantization
    if not description:
        raise UnsupportedModelError(
            f"{folder} says nothing of a quantization: config.json has no quantization_config, and "
            f"there is no quant_config.json or quantize_config.json, which loader '{loader}' needs"
        )
    return read_scheme(folder, description)


def _weight_bits(weight_type: str) -> int:
    if weight_type not in _WEIGHT_BITS:
        raise StartupError(f"weights={weight_type[:100]} is not known; say int8 or int4")
    return _WEIGHT_BITS[weight_type]


def _rounding_scheme(
    model_class: type[PreTrainedModel], config: PreTrainedConfig, bits: int
) -> RoundingScheme:
    """All linear layers but the head, whose errors nothing behind it evens out."""
    sizes = {
        name: (layer.in_features, layer.out_features)
        for name, layer in linear_layers(model_class, config).items()
        if "layers." in name or ".h." in name
    }
    fitting = {name: size for name, size in sizes.items() if rounding_group_size(size[0])}
    if not fitting:
        raise UnsupportedModelError(
            f"{model_class.__name__} has no linear layers that could be rounded to {bits} bits; "
            "load it without --load-in-8bit and --load-in-4bit"
        )
    return RoundingScheme(bits, fitting)


def _quantization(plan: _Plan) -> Quantization | None:
    if plan.scheme is None:
        return None
    return Quantization(plan.scheme, choose_product(plan.device, plan.dtype, plan.num_threads))


def _bytes_in(
    dtype: torch.dtype,
    weights: WeightFiles,
    scheme: QuantizationScheme | None,
    device: torch.device,
) -> int:
    """Size of the weights in memory; a pickled checkpoint's is taken as it is."""
    if not weights.tensors:
        return weights.num_bytes
    layers = scheme.layers(weights.tensors) if scheme else set()
    packed = {name for layer in layers for name in scheme.tensors_of(layer)} if scheme else set()
    num_bytes = 0
    for name, entry in weights.tensors.items():
        if scheme is not None and name in packed:
            num_weight_bytes = scheme.num_bytes(entry)
            if expands_weights(device):
                num_weight_bytes = num_weight_bytes * 8 * dtype.itemsize // scheme.bits
            num_bytes += num_weight_bytes
        elif stored := entry.float_bytes:
            num_bytes += entry.num_bytes * dtype.itemsize // stored
        else:
            num_bytes += entry.num_bytes
    return num_bytes


# ------------------------------------------------------------------------------------ KV cache


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
    reserved = step.workspace_bytes + _adapter_bytes(request, plan)
    if plan.graph_sizes and uses_kernels(plan.device):
        reserved += graphs_bytes(plan.graph_sizes, step)
    free = _free_memory(request, plan.device, plan.ranks)
    budget = plan.ranks.least(kv_cache_budget(request, free, reserved), plan.device)
    layout = plan_kv_cache(groups, demand, budget, is_capped=request.kv_cache_bytes is None)
    return KVTensors(layers, groups, layout, dtype=plan.dtype, device=plan.device), layout


def _adapter_bytes(request: LoadRequest, plan: _Plan) -> int:
    """Memory of the adapters that the engine will load after the cache is made."""
    adapters = [AdapterFiles.read(Path(folder)) for folder in (request.adapters or {}).values()]
    return sum(
        _bytes_in(plan.dtype, adapter.weights, scheme=None, device=plan.device)
        for adapter in adapters
    )


def _intermediate_size(config: PreTrainedConfig) -> int:
    """Width of the feed-forward layer; four times hidden where the configuration has no word."""
    for name in ("intermediate_size", "ffn_dim", "n_inner", "ffn_hidden_size"):
        size = getattr(config, name, None)
        if isinstance(size, int):
            return size
    return 4 * config.hidden_size


# --------------------------------------------------------------------------------------- facts


def _describe(
    model: PreTrainedModel, plan: _Plan, request: LoadRequest, *, stretches_rope: bool
) -> ModelInfo:
    parameters = list(model.parameters())
    quantized = quantized_layers(model)
    dtype = str(plan.dtype).removeprefix("torch.")
    quantization = plan.scheme.description if plan.scheme else None
    numerics = (
        f"{plan.loader} {transformers.__version__}",
        f"torch {torch.__version__}",
        dtype,
        *((quantization,) if quantization else ()),
        *((f"on {plan.ranks.size} ranks",) if plan.ranks.size > 1 else ()),
        *((f"RoPE for {plan.max_model_len} tokens",) if stretches_rope else ()),
        _hardware(plan.device),
    )
    return ModelInfo(
        loader=plan.loader,
        architecture=type(model).__name__,
        dtype=dtype,
        device=str(plan.device),
        max_model_len=plan.max_model_len,
        vocab_size=_num_logits(model.get_output_embeddings()),
        eos_token_ids=eos_token_ids(request.path),
        num_parameters=sum(parameter.numel() for parameter in parameters)
        + sum(layer.in_features * layer.out_features for layer in quantized),
        weight_bytes=sum(parameter.nbytes for parameter in parameters)
        + sum(layer.weight_bytes for layer in quantized),
        quantization=quantization,
        fingerprint=fingerprint(
            plan.weights.files, read_json(request.path / "config.json"), numerics
        ),
        capabilities=Capabilities(adapters=plan.ranks.size == 1),
        details={"tensor_parallel_size": plan.ranks.size},
        tokenizer_json=_convert_tokenizer(request),
    )


def _num_logits(head: Any) -> int:
    return head.out_features if hasattr(head, "out_features") else head.weight.shape[0]


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
