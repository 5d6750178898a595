"""Configuration objects: what is not known here is refused, unlike in the models' constructors."""

from __future__ import annotations

from typing import Any

from transformers_neuronx.constants import GQA, Layout

CAST_DTYPES = ("float32", "float16", "bfloat16")


class ContinuousBatchingConfig:
    """How many sequences share the cache: `max_num_seqs` or `batch_size_for_shared_caches`."""

    def __init__(self, **kwargs: Any) -> None:
        if "max_num_seqs" in kwargs:
            self.batch_size_for_shared_caches = kwargs.pop("max_num_seqs")
            kwargs.pop("batch_size_for_shared_caches", None)
        else:
            self.batch_size_for_shared_caches = kwargs.pop("batch_size_for_shared_caches")
        self.max_num_seqs = self.batch_size_for_shared_caches
        self.max_model_len = kwargs.pop("max_model_len", None)
        self.optimized_paged_attention = kwargs.pop("optimized_paged_attention", False)
        self.enable_chunked_prefill = kwargs.pop("enable_chunked_prefill", False)
        assert not kwargs, f"Unexpected ContinuousBatchingConfig keyword arguments: {kwargs}"
        if self.enable_chunked_prefill:
            assert self.optimized_paged_attention, (
                "enable_chunked_prefill requires optimized_paged_attention"
            )


class QuantizationConfig:
    """Weights stored in eight bits; `dequant_dtype` must equal the model's `amp`."""

    def __init__(
        self,
        quant_dtype: str = "s8",
        dequant_dtype: str = "f16",
        quantize_method: str = "vector_dynamic",
        quantize_attn: bool = True,
        no_quantize_list: list[str] | None = None,
    ) -> None:
        assert quant_dtype in ("s8", "f8e4m3fn"), f"Unexpected quant_dtype: {quant_dtype}"
        self.quant_dtype = quant_dtype
        self.dequant_dtype = dequant_dtype
        self.quantize_method = quantize_method
        self.quantize_attn = quantize_attn
        self.no_quantize_list = list(no_quantize_list or [])


class KVCacheQuantizationConfig:
    """Keys and values stored in another type."""

    def __init__(
        self,
        quant_dtype: str = "s8",
        dequant_dtype: str = "bf16",
        quantize_method: str = "direct_cast",
    ) -> None:
        assert quant_dtype in ("s8", "f16", "bf16", "f8e4m3fn"), quant_dtype
        self.quant_dtype = quant_dtype
        self.dequant_dtype = dequant_dtype
        self.quantize_method = quantize_method


class SparseAttnConfig:
    """Accepted by name; the double has no sparse attention."""

    def __init__(self, **kwargs: Any) -> None:
        raise NotImplementedError("the double has no sparse attention")


class GenerationConfig:
    """Sampling that is compiled into the graphs."""

    def __init__(
        self,
        *,
        max_length: int | None = None,
        do_sample: bool = False,
        top_k: int = 50,
        top_p: float = 1.0,
        top_p_min_tokens: int = 1,
        global_top_k: int | None = None,
        eos_token_id: int | None = None,
        temperature: float = 1.0,
        dynamic: bool = False,
        deterministic: bool = False,
        per_batch_line: bool = False,
    ) -> None:
        self.max_length = max_length
        self.do_sample = do_sample
        self.top_k = top_k
        self.top_p = top_p
        self.top_p_min_tokens = top_p_min_tokens
        self.global_top_k = global_top_k
        self.eos_token_id = eos_token_id
        self.temperature = temperature
        self.dynamic = dynamic
        self.deterministic = deterministic
        self.per_batch_line = per_batch_line


DEFAULTS: dict[str, Any] = {
    "sparse_attn": None,
    "quant": None,
    "kv_cache_quant": None,
    "continuous_batching": None,
    "attention_layout": Layout.HSB,
    "collectives_layout": Layout.HSB,
    "cache_layout": Layout.SBH,
    "padding_side": "left",
    "group_query_attention": None,
    "sequence_parallel_norm": False,
    "sequence_parallel_norm_threshold": 2048,
    "bf16_rms_norm": False,
    "on_device_embedding": False,
    "on_device_generation": None,
    "all_reduce_dtype": None,
    "cast_logits_dtype": "float32",
    "fuse_qkv": False,
    "qkv_tiling": False,
    "weight_tiling": False,
    "mlp_in_weight_tiling_permute_order": [1, 2, 0, 3],
    "mlp_out_weight_tiling_permute_order": [1, 2, 0, 3],
    "log_softmax_scores": False,
    "shard_over_sequence": False,
    "output_all_logits": False,
    "attn_output_transposed": False,
    "fused_rmsnorm_qkv": False,
    "fused_rmsnorm_mlp": False,
    "mlp_out_weight_transpose": False,
    "fuse_mlp": False,
    "is_eagle_target": False,
    "is_eagle_draft": False,
    "has_pre_attention_norm": True,
    "compilation_worker_count": None,
    "duplicate_q_weight_sos": False,
}


class NeuronConfig:
    """How a model is laid out and compiled; every field is a keyword."""

    continuous_batching: ContinuousBatchingConfig | None
    quant: QuantizationConfig | None
    on_device_generation: GenerationConfig | None
    group_query_attention: GQA | None
    padding_side: str
    cast_logits_dtype: str

    def __init__(self, **kwargs: Any) -> None:
        for name, default in DEFAULTS.items():
            setattr(self, name, kwargs.pop(name, default))
        assert not kwargs, f"Unexpected NeuronConfig keyword arguments: {kwargs}"
        assert self.padding_side in ("left", "right"), (
            f"padding_side must be left or right, not {self.padding_side}"
        )
        assert self.cast_logits_dtype in CAST_DTYPES, (
            f"cast_logits_dtype must be one of {CAST_DTYPES}, not {self.cast_logits_dtype}"
        )
        if self.continuous_batching is not None:
            self.padding_side = "right"

    def compiled(self) -> dict[str, Any]:
        """Everything that changes the graphs, as plain values."""
        return {
            name: _plain(value)
            for name, value in vars(self).items()
            if name != "compilation_worker_count"
        }


def _plain(value: Any) -> Any:
    if isinstance(value, Layout | GQA):
        return value.value
    return vars(value) if hasattr(value, "__dict__") else value
