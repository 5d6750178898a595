"""The `Native` loader: Llama-shaped models on x86-64 processors, without torch.

Weights are bfloat16, or AWQ's and GPTQ's codes. `--loader-option weights=int8` rounds bfloat16
to 8 bits as it is read: half the memory, and half the time where a step is bound by reading it.

It is tried before Transformers, AutoAWQ and AutoGPTQ where the loader is inferred and the driver
shows no GPU. Weights go straight from the file into the packed form the kernels read; nothing of
torch is imported, so a small model answers within a second of the engine's start.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt

from tgwui_k8s.contract import (
    Batch,
    KVLayout,
    LoadRequest,
    ModelInfo,
    ProgressCallback,
    Sampler,
    default_token_budget,
)
from tgwui_k8s.errors import UnsupportedModelError
from tgwui_k8s.runtime.context_length import choose_max_model_len
from tgwui_k8s.runtime.kv_layout import (
    KVDemand,
    LayerGroup,
    LayerShape,
    group_layers,
    plan_kv_cache,
)
from tgwui_k8s.runtime.limits import available_memory, cpu_quota, has_nvidia_gpu
from tgwui_k8s.runtime.llama_checkpoint import LlamaCheckpoint
from tgwui_k8s.runtime.memory import StepSize, check_weights_fit, kv_cache_budget
from tgwui_k8s.runtime.native import (
    BFLOAT16,
    BLOCK_SIZE,
    INT8,
    NativeDecoder,
    WeightKind,
)
from tgwui_k8s.runtime.native_library import Variant, variants_here, why_unavailable
from tgwui_k8s.runtime.native_weights import read_weights
from tgwui_k8s.runtime.prefetching import reading_ahead
from tgwui_k8s.runtime.quantized.formats import packed_format
from tgwui_k8s.runtime.rope import rope_parameters, rope_tables
from tgwui_k8s.runtime.tensor_reader import TensorReader
from tgwui_k8s.runtime.warm_up import compute_a_little
from tgwui_k8s.storage.identity import eos_token_ids, fingerprint
from tgwui_k8s.storage.model_files import ModelFiles
from tgwui_k8s.storage.weights import WeightFiles, find_weights


class NativeRunner:
    """contract.ModelRunner over the native decoder."""

    def __init__(self, decoder: NativeDecoder, info: ModelInfo, layout: KVLayout) -> None:
        self.info = info
        self.layout = layout
        self.sampler: Sampler | None = None
        self._decoder = decoder

    def execute(self, batch: Batch) -> npt.NDArray[np.float32]:
        """One call into the kernels for the whole batch."""
        return self._decoder.step(batch)

    def warm_up(self) -> None:
        """A short prompt and one token."""
        compute_a_little(self)

    def close(self) -> None:
        """Free weights and KV cache."""
        self._decoder.close()


class NativeLoader:
    """contract.Loader for the checkpoints of `runtime.llama_checkpoint`."""

    name: ClassVar[str] = "Native"
    options: ClassVar[dict[str, str]] = {
        "weights": "bfloat16 (default), or int8: rounded at load, half the memory, faster decoding."
    }

    def __init__(self, variant: Variant | None = None) -> None:
        """By default the variant that is fastest on this processor."""
        self._variant = variant

    def check(self, request: LoadRequest) -> None:
        """Raise what `load` would, as far as the files' headers and this machine tell."""
        _, _, checkpoint = _examine(request)
        _weight_kind(request, checkpoint)

    def load(self, request: LoadRequest, progress: ProgressCallback) -> NativeRunner:
        """Raises `UnsupportedModelError` for every model that Transformers should run instead."""
        config, weights, checkpoint = _examine(request)
        held, quantization = _weight_kind(request, checkpoint)
        variant = self._variant or variants_here()[0]
        max_model_len = choose_max_model_len(
            config.get("max_position_embeddings"), [rope_parameters(config)], request.max_model_len
        )
        num_weight_bytes = checkpoint.num_weight_bytes(held)
        groups, layout = _plan(checkpoint, request, max_model_len, num_weight_bytes)
        with _left_to_transformers():
            cosines, sines = rope_tables(
                config, head_dim=checkpoint.shape.head_dim, num_positions=max_model_len
            )
        decoder = NativeDecoder(
            checkpoint.shape,
            cosines=cosines,
            sines=sines,
            num_threads=request.num_threads or cpu_quota(),
            variant=variant,
            weights=held,
        )
        try:
            _reserve_cache(decoder, checkpoint, groups, layout)
            with reading_ahead(request, weights, progress) as note:
                read_weights(decoder, checkpoint, TensorReader(weights.tensors), note)
        except BaseException:
            decoder.close()  # another loader may follow, and needs the memory
            raise
        info = ModelInfo(
            loader=self.name,
            architecture=config["architectures"][0],
            dtype="bfloat16",
            device="cpu",
            max_model_len=max_model_len,
            vocab_size=checkpoint.shape.vocab,
            eos_token_ids=eos_token_ids(request.path),
            num_parameters=checkpoint.num_parameters,
            weight_bytes=num_weight_bytes,
            quantization=quantization,
            fingerprint=fingerprint(
                weights.files, dict(config), (variant.numerics, quantization or "bfloat16")
            ),
        )
        return NativeRunner(decoder, info, layout)


def _examine(request: LoadRequest) -> tuple[dict[str, Any], WeightFiles, LlamaCheckpoint]:
    """The configuration, the files and what they hold; refuses what the kernels cannot run."""
    _refuse_unsuitable(request)
    files = ModelFiles.read(request.path)
    weights = find_weights(request.path)
    packed = packed_format(files)
    with _left_to_transformers():
        checkpoint = LlamaCheckpoint.read(files.config, weights.tensors, packed)
    return files.config, weights, checkpoint


@contextmanager
def _left_to_transformers() -> Iterator[None]:
    """A configuration that leaves something out: Transformers knows the defaults, or says why."""
    try:
        yield
    except (KeyError, TypeError) as error:
        raise UnsupportedModelError(f"config.json is not complete: {error}") from error


def _weight_kind(
    request: LoadRequest, checkpoint: LlamaCheckpoint
) -> tuple[WeightKind, str | None]:
    """How the weights are held, and what `ModelInfo` calls it."""
    wanted = request.options.get("weights", "bfloat16")
    if wanted not in ("bfloat16", "int8"):
        raise UnsupportedModelError(
            f"loader 'Native': weights={wanted[:100]} is not known; say bfloat16 or int8"
        )
    packed = checkpoint.packed
    if packed is None:
        return (INT8, "int8") if wanted == "int8" else (BFLOAT16, None)
    if "weights" in request.options:
        raise UnsupportedModelError(
            f"loader 'Native': the weights are {packed.stored.description} already; "
            f"leave out weights={wanted}"
        )
    return packed.held, packed.stored.description


def _refuse_unsuitable(request: LoadRequest) -> None:
    if unknown := sorted(set(request.options) - set(NativeLoader.options)):
        raise UnsupportedModelError(f"loader 'Native' has no option '{unknown[0][:100]}'")
    reason = why_unavailable()
    if reason is not None:
        raise UnsupportedModelError(reason)
    if request.dtype not in ("auto", "bfloat16"):
        raise UnsupportedModelError(f"the native decoder computes in bfloat16, not {request.dtype}")
    if request.device not in ("auto", "cpu"):
        raise UnsupportedModelError("the native decoder runs on CPUs")
    if request.device == "auto" and request.loader_is_inferred and has_nvidia_gpu():
        raise UnsupportedModelError("here is a GPU; --device cpu would leave it alone")


def _plan(
    checkpoint: LlamaCheckpoint, request: LoadRequest, max_model_len: int, num_weight_bytes: int
) -> tuple[tuple[LayerGroup, ...], KVLayout]:
    """Divide the memory that the weights leave among the KV groups."""
    shape = checkpoint.shape
    layers = {
        index: LayerShape(shape.kv_heads, shape.head_dim, shape.head_dim, window)
        for index, window in enumerate(checkpoint.windows)
    }
    groups = group_layers(layers, block_size=BLOCK_SIZE, element_bytes=2)
    demand = KVDemand(
        max_model_len=max_model_len,
        max_num_seqs=request.max_num_seqs,
        max_num_batched_tokens=_token_budget(request),
        block_size=BLOCK_SIZE,
    )
    free = available_memory(request.memory_limit_bytes)
    check_weights_fit(num_weight_bytes, free)
    step = StepSize(
        num_tokens=max(_token_budget(request), request.max_num_seqs),
        num_sequences=request.max_num_seqs,
        hidden_size=shape.hidden,
        intermediate_size=shape.ffn,
        vocab_size=shape.vocab,
        element_bytes=4,  # activations are float32 where there are no BF16 instructions
    )
    reserved = step.workspace_bytes + num_weight_bytes
    budget = kv_cache_budget(request, free, reserved)
    return groups, plan_kv_cache(groups, demand, budget, is_capped=request.kv_cache_bytes is None)


def _token_budget(request: LoadRequest) -> int:
    return request.max_num_batched_tokens or default_token_budget("cpu")


def _reserve_cache(
    decoder: NativeDecoder,
    checkpoint: LlamaCheckpoint,
    groups: tuple[LayerGroup, ...],
    layout: KVLayout,
) -> None:
    for index, (group, size) in enumerate(zip(groups, layout.groups, strict=True)):
        for layer in group.layers:
            decoder.set_layer(
                layer, group=index, num_blocks=size.num_blocks, window=checkpoint.windows[layer]
            )
