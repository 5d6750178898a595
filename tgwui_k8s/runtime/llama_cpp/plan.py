"""From a GGUF file's metadata to the size of its KV cache: arithmetic, no llama.cpp."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from tgwui_k8s.contract import KVGroup, KVLayout, LoadRequest, default_token_budget
from tgwui_k8s.errors import BrokenModelError
from tgwui_k8s.runtime.context_length import choose_max_model_len
from tgwui_k8s.runtime.kv_layout import KVDemand, LayerGroup, plan_kv_cache
from tgwui_k8s.runtime.limits import available_memory
from tgwui_k8s.runtime.llama_cpp.options import CACHE_TYPES, LlamaCppOptions
from tgwui_k8s.runtime.memory import StepSize, check_weights_fit, kv_cache_budget

BLOCK_SIZE = 32
"""Positions of one block: what a cached prefix is counted in. llama.cpp has no blocks."""

DEFAULT_CELLS = 16_384
"""Tokens that the cache holds where nobody said how large it is.

In llama.cpp every token of a step looks over all cells that are in use, its own and others', and
passes over the others': a larger cache makes every step slower. `--kv-cache-memory` says more.
"""

_FLOAT_BYTES = 4


@dataclass(frozen=True)
class GGUFShape:
    """Sizes of a model, from its metadata."""

    metadata: Mapping[str, Any]

    @property
    def architecture(self) -> str:
        """llama.cpp's name for it."""
        return str(self.metadata.get("general.architecture", ""))

    def number(self, key: str, default: int = 0) -> int:
        """A number below the architecture's prefix."""
        value = self.metadata.get(f"{self.architecture}.{key}", default)
        return value if isinstance(value, int) else default

    @property
    def numbers_per_token(self) -> tuple[int, int]:
        """Elements of all layers' keys, and of their values, for one token."""
        num_heads = max(1, _largest(self.metadata.get(f"{self.architecture}.attention.head_count")))
        head_dim = self.number("embedding_length") // num_heads
        heads = self.metadata.get(f"{self.architecture}.attention.head_count_kv", num_heads)
        if not isinstance(heads, list):
            heads = [heads] * self.number("block_count")
        key_dim = self.number("attention.key_length", head_dim)
        return sum(heads) * key_dim, sum(heads) * self.number("attention.value_length", head_dim)

    def max_model_len(self, options: LlamaCppOptions, requested: int | None) -> int:
        """The longest sequence; stretched RoPE may go beyond what the file says."""
        trained = self.metadata.get(f"{self.architecture}.context_length")
        factor = 1.0 / (options.freq_scale or 1.0)
        return choose_max_model_len(trained, [{"rope_type": "linear", "factor": factor}], requested)

    def longrope_context(self, options: LlamaCppOptions) -> int | None:
        """The context that LongRoPE was trained for; None where the model has another RoPE.

        Such a model chooses between two sets of factors by the size of the whole cache.
        """
        if self.metadata.get(f"{self.architecture}.rope.scaling.type") not in (None, "longrope"):
            return None
        original = self.number("rope.scaling.original_context_length")
        return (options.yarn_orig_ctx or original) if original else None

    def takes_long_factors(self, options: LlamaCppOptions, num_cells: int) -> bool:
        """Whether a cache of so many tokens makes it choose those for long texts."""
        original = self.longrope_context(options)
        return original is not None and num_cells > original


def plan_layout(
    request: LoadRequest,
    options: LlamaCppOptions,
    shape: GGUFShape,
    *,
    weight_bytes: int,
    vocab_size: int,
    use_gpu: bool,
    keeps_prefixes: bool,
) -> KVLayout:
    """How many blocks there are.

    Raises `NotEnoughMemoryError` where weights or one sequence of full length do not fit. The
    memory of a GPU is llama.cpp's to find too small.
    """
    max_model_len = shape.max_model_len(options, request.max_model_len)
    sizes = (CACHE_TYPES[name][1] for name in options.cache_types)
    token_bytes = sum(n * size for n, size in zip(shape.numbers_per_token, sizes, strict=True))
    block_bytes = max(1, int(token_bytes * BLOCK_SIZE))
    demand = KVDemand(
        max_model_len=max_model_len,
        max_num_seqs=request.max_num_seqs,
        max_num_batched_tokens=batch_size(request, options),
        block_size=BLOCK_SIZE,
    )
    budget = _budget(
        request, options, shape, weight_bytes, vocab_size, block_bytes, use_gpu=use_gpu
    )
    is_capped = request.kv_cache_bytes is None
    layout = plan_kv_cache([LayerGroup((), None, block_bytes)], demand, budget, is_capped=is_capped)
    num_blocks = layout.groups[0].num_blocks
    if is_capped:
        num_blocks = min(num_blocks, -(-max(max_model_len, DEFAULT_CELLS) // BLOCK_SIZE))
    original = shape.longrope_context(options)
    if original is not None and max_model_len <= original:
        num_blocks = min(num_blocks, original // BLOCK_SIZE)
    return KVLayout(
        block_size=BLOCK_SIZE,
        groups=(KVGroup(num_blocks=num_blocks),),
        prefix_caching=keeps_prefixes,
    )


def batch_size(request: LoadRequest, options: LlamaCppOptions) -> int:
    """Most tokens of one call to llama.cpp; a step that has more takes several calls."""
    budget = request.max_num_batched_tokens or default_token_budget("cpu")
    return options.batch_size or max(budget, request.max_num_seqs)


def _budget(
    request: LoadRequest,
    options: LlamaCppOptions,
    shape: GGUFShape,
    weight_bytes: int,
    vocab_size: int,
    block_bytes: int,
    *,
    use_gpu: bool,
) -> int:
    if use_gpu:
        return request.kv_cache_bytes or block_bytes * 2**31
    free = available_memory(request.memory_limit_bytes)
    check_weights_fit(weight_bytes, free)
    step = StepSize(
        num_tokens=min(options.ubatch_size, batch_size(request, options)),
        num_sequences=request.max_num_seqs,
        hidden_size=shape.number("embedding_length"),
        intermediate_size=_largest(shape.metadata.get(f"{shape.architecture}.feed_forward_length")),
        vocab_size=vocab_size,
        element_bytes=_FLOAT_BYTES,
    )
    return kv_cache_budget(request, free, step.workspace_bytes + weight_bytes)


def _largest(value: Any) -> int:
    """Of a number, or of one per layer."""
    numbers = value if isinstance(value, list) else [value]
    if not all(isinstance(number, int) for number in numbers):
        raise BrokenModelError("the GGUF file does not say how large its layers are")
    return max(numbers, default=0)
