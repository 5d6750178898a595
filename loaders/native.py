"""The `Native` loader: Llama-shaped models in bfloat16 on x86-64 processors, without torch.

`--loader-option weights=int8` rounds the weights to 8 bits as they are read: half the memory, and
half the time where a step is bound by reading them.

It is tried before Transformers where the loader is inferred. Weights go straight from the file
into the packed form the kernels read; nothing of torch is imported, so a small model answers
within a second of the engine's start.
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
    LoadProgress,
    LoadRequest,
    ModelInfo,
    ProgressCallback,
    Sampler,
    ScheduledSequence,
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
from tgwui_k8s.runtime.limits import available_memory, cpu_quota
from tgwui_k8s.runtime.llama_checkpoint import LlamaCheckpoint, TensorReader
from tgwui_k8s.runtime.memory import StepSize, check_weights_fit, kv_cache_budget
from tgwui_k8s.runtime.native import (
    BLOCK_SIZE,
    NativeDecoder,
    NativeLinear,
    NativeVector,
    Variant,
    variants_here,
    why_unavailable,
)
from tgwui_k8s.runtime.prefetching import reading_ahead
from tgwui_k8s.runtime.rope import rope_parameters, rope_tables
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
        """A short prompt and one token: touches every weight once."""
        tables = tuple([0] for _ in self.layout.groups)
        for start, token_ids in ((0, [0, 0]), (2, [0])):
            part = ScheduledSequence(
                row=0, start=start, token_ids=token_ids, block_tables=tables, num_logits=1
            )
            self.execute(Batch([part], len(token_ids)))

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
        _wants_int8(request)
        _examine(request)

    def load(self, request: LoadRequest, progress: ProgressCallback) -> NativeRunner:
        """Raises `UnsupportedModelError` for every model that Transformers should run instead."""
        int8 = _wants_int8(request)
        config, weights, checkpoint = _examine(request)
        variant = self._variant or variants_here()[0]
        max_model_len = choose_max_model_len(
            config.get("max_position_embeddings"), [rope_parameters(config)], request.max_model_len
        )
        num_weight_bytes = checkpoint.num_weight_bytes(int8=int8)
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
            int8_weights=int8,
        )
        _reserve_cache(decoder, checkpoint, groups, layout)
        with reading_ahead(request, weights, progress) as note:
            _read_weights(decoder, checkpoint, TensorReader(weights.tensors), note)
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
            quantization="int8" if int8 else None,
            fingerprint=fingerprint(
                weights.files, dict(config), (variant.numerics, "int8" if int8 else "bfloat16")
            ),
        )
        return NativeRunner(decoder, info, layout)


def _examine(request: LoadRequest) -> tuple[dict[str, Any], WeightFiles, LlamaCheckpoint]:
    """The configuration, the files and what they hold; refuses what the kernels cannot run."""
    _refuse_unsuitable(request)
    config = ModelFiles.read(request.path).config
    weights = find_weights(request.path)
    with _left_to_transformers():
        return config, weights, LlamaCheckpoint.read(config, weights.tensors)


@contextmanager
def _left_to_transformers() -> Iterator[None]:
    """A configuration that leaves something out: Transformers knows the defaults, or says why."""
    try:
        yield
    except (KeyError, TypeError) as error:
        raise UnsupportedModelError(f"config.json is not complete: {error}") from error


def _wants_int8(request: LoadRequest) -> bool:
    weights = request.options.get("weights", "bfloat16")
    if weights not in ("bfloat16", "int8"):
        raise UnsupportedModelError(
            f"loader 'Native': weights={weights[:100]} is not known; say bfloat16 or int8"
        )
    return weights == "int8"


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


def _read_weights(
    decoder: NativeDecoder,
    checkpoint: LlamaCheckpoint,
    reader: TensorReader,
    progress: ProgressCallback,
) -> None:
    """Pack every tensor; each is read from its file once."""
    total = sum(reader.num_bytes(name) for name, _ in checkpoint.tensor_shapes())
    done = 0

    def set_linear(which: NativeLinear, layer: int, *names: str) -> None:
        nonlocal done
        decoder.set_linear(which, layer, [reader.bfloat16(name) for name in names])
        done += sum(reader.num_bytes(name) for name in names)
        progress(LoadProgress("loading", done, total))

    def set_vector(which: NativeVector, layer: int, *names: str) -> None:
        nonlocal done
        decoder.set_vector(which, layer, np.concatenate([reader.float32(name) for name in names]))
        done += sum(reader.num_bytes(name) for name in names)

    embedding = "model.embed_tokens.weight"
    set_linear(NativeLinear.HEAD, 0, embedding if checkpoint.is_tied else "lm_head.weight")
    if not checkpoint.is_tied:
        decoder.set_embedding(reader.bfloat16(embedding))
        done += reader.num_bytes(embedding)
    set_vector(NativeVector.FINAL_NORM, 0, "model.norm.weight")
    for layer in range(checkpoint.shape.layers):
        prefix = f"model.layers.{layer}."
        qkv = [f"{prefix}self_attn.{name}_proj" for name in "qkv"]
        set_linear(NativeLinear.QKV, layer, *(f"{name}.weight" for name in qkv))
        set_linear(NativeLinear.OUT, layer, prefix + "self_attn.o_proj.weight")
        set_linear(
            NativeLinear.GATE_UP,
            layer,
            prefix + "mlp.gate_proj.weight",
            prefix + "mlp.up_proj.weight",
        )
        set_linear(NativeLinear.DOWN, layer, prefix + "mlp.down_proj.weight")
        set_vector(NativeVector.ATTENTION_NORM, layer, prefix + "input_layernorm.weight")
        set_vector(NativeVector.MLP_NORM, layer, prefix + "post_attention_layernorm.weight")
        if checkpoint.has_qkv_bias:
            set_vector(NativeVector.QKV_BIAS, layer, *(f"{name}.bias" for name in qkv))
        if checkpoint.has_head_norms:
            set_vector(NativeVector.QUERY_NORM, layer, prefix + "self_attn.q_norm.weight")
            set_vector(NativeVector.KEY_NORM, layer, prefix + "self_attn.k_norm.weight")
    progress(LoadProgress("loading", total, total))
