"""What a model is compiled for: every value that changes the graphs, decided and checked.

What the operator says wins; what is left open comes from the manifest of the artifacts, so that a
compiled model needs no flags; the rest has a default.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgspec

from tgwui_k8s.contract import LoadRequest
from tgwui_k8s.errors import UnsupportedModelError
from tgwui_k8s.neuron.instances import allowed_tp_degrees
from tgwui_k8s.neuron.layout import Library
from tgwui_k8s.neuron.options import AMP_NAMES, NeuronOptions
from tgwui_k8s.neuron.visible_cores import Host

CONTINUOUS_TYPES = frozenset({"llama", "code_llama", "mistral"})
"""Model types whose classes can batch continuously."""
SAMPLE_TYPES = frozenset({"mixtral", "bloom", "gpt2", "gptj", "gpt_neox", "opt"})
"""Those with the library's own sampling loop alone."""

_DEFAULT_BATCH_SIZE = 4
_DEFAULT_POSITIONS = 4096
_SMALLEST_BUCKET = 128
_FEWEST_POSITIONS = 4
_LIMITED_TYPES = frozenset({"gpt2", "opt", "gptj", "gpt_neox"})
"""The library refuses more positions than these were trained with."""


class Parameters(msgspec.Struct, frozen=True, kw_only=True):
    """What was compiled, or is to be. Names are those of the options."""

    library: Library
    mode: str
    """`continuous` or `sample`."""
    tp_degree: int
    amp: str
    batch_size: int
    n_positions: int
    context_buckets: tuple[int, ...]
    gqa: str = ""
    """Empty: the library's own choice."""
    attention_layout: str = "HSB"
    collectives_layout: str = "HSB"
    fuse_qkv: bool = False
    quantization: str = "none"

    @property
    def max_prompt_len(self) -> int:
        """The longest prompt the compiled context graphs take, with room for one token."""
        return min(self.context_buckets[-1], self.n_positions - 1)


def decide(
    options: NeuronOptions,
    request: LoadRequest,
    config: Mapping[str, Any],
    *,
    library: Library,
    host: Host,
    compiled: Parameters | None = None,
) -> Parameters:
    """All parameters; those of `compiled` where the operator has said nothing else.

    Raises `UnsupportedModelError` for contradictions and for what cannot be.
    """
    base = compiled or _defaults(options, request, config, library=library, host=host)
    chosen = {
        name: value
        for name in Parameters.__struct_fields__
        if name not in ("library", "mode") and (value := getattr(options, name)) is not None
    }
    if options.mode != "auto":
        chosen["mode"] = options.mode
    if request.dtype != "auto":
        chosen["amp"] = _same("amp", options.amp, "dtype", AMP_NAMES[request.dtype])
    longest = request.max_model_len or 0
    if "n_positions" not in chosen and longest > base.n_positions:
        chosen["n_positions"] = longest
    parameters = msgspec.structs.replace(base, **{"library": library, **chosen})
    if longest > parameters.n_positions:
        raise UnsupportedModelError(
            f"max_model_len={longest} is more than n_positions={parameters.n_positions}"
        )
    if options.context_buckets is None and parameters.n_positions != base.n_positions:
        parameters = msgspec.structs.replace(parameters, context_buckets=())
    if not parameters.context_buckets:
        buckets = _buckets(parameters.n_positions)
        parameters = msgspec.structs.replace(parameters, context_buckets=buckets)
    _check(parameters, config)
    return parameters


def check_cores(parameters: Parameters, host: Host) -> None:
    """Raise `UnsupportedModelError` unless the machine can run this tensor-parallel degree."""
    allowed = allowed_tp_degrees(host.family)
    fitting = [d for d in allowed if host.num_cores is None or d <= host.num_cores]
    shown = ", ".join(map(str, fitting)) or "none"
    degree = parameters.tp_degree
    if degree not in allowed:
        raise UnsupportedModelError(
            f"tp_degree={degree} is a topology that {host.family or 'no inf2 or trn1'} "
            f"does not have; what works here: {shown}"
        )
    if host.num_cores is not None and degree > host.num_cores:
        raise UnsupportedModelError(
            f"too few NeuronCores: tp_degree={degree}, but {host.num_cores} are visible "
            f"({host.source}); what works here: tp_degree {shown}, or a pod that requests more "
            "aws.amazon.com/neuron"
        )


def _defaults(
    options: NeuronOptions,
    request: LoadRequest,
    config: Mapping[str, Any],
    *,
    library: Library,
    host: Host,
) -> Parameters:
    mode = "continuous" if config.get("model_type") in CONTINUOUS_TYPES else "sample"
    if options.mode != "auto":
        mode = options.mode
    longest = config.get("max_position_embeddings") or config.get("n_positions")
    positions = min(longest or _DEFAULT_POSITIONS, _DEFAULT_POSITIONS)
    dtype = str(config.get("dtype") or config.get("torch_dtype") or "")
    return Parameters(
        library=library,
        mode=mode,
        tp_degree=options.tp_degree or _largest_degree(host),
        amp=AMP_NAMES.get(dtype, "bf16"),
        batch_size=_DEFAULT_BATCH_SIZE if mode == "continuous" else 1,
        n_positions=request.max_model_len or positions,
        context_buckets=(),
    )


def _largest_degree(host: Host) -> int:
    if host.num_cores is None:
        raise UnsupportedModelError(
            "tp_degree is not set, and no NeuronCores are visible to count (no "
            "NEURON_RT_VISIBLE_CORES, no /dev/neuron*): set --tp-degree, or request "
            "aws.amazon.com/neuron in the pod"
        )
    return max(degree for degree in allowed_tp_degrees(host.family) if degree <= host.num_cores)


def _buckets(n_positions: int) -> tuple[int, ...]:
    """Doubling up to the whole context, so that every prompt is computed in one go."""
    buckets = []
    size = _SMALLEST_BUCKET
    while size < n_positions:
        buckets.append(size)
        size *= 2
    return (*buckets, n_positions)


def _same(name: str, value: Any, other_name: str, other: Any) -> Any:
    if value is not None and value != other:
        raise UnsupportedModelError(
            f"{name}={value} and {other_name}={other} contradict each other: set one of them"
        )
    return other


def _check(parameters: Parameters, config: Mapping[str, Any]) -> None:
    kind = config.get("model_type")
    if kind not in CONTINUOUS_TYPES | SAMPLE_TYPES:
        known = ", ".join(sorted(CONTINUOUS_TYPES | SAMPLE_TYPES))
        raise UnsupportedModelError(
            f"transformers-neuronx runs {known}; this model's type is '{str(kind)[:100]}'"
        )
    hidden, heads = config.get("hidden_size"), config.get("num_attention_heads")
    head_dim = config.get("head_dim")
    if head_dim and hidden and heads and head_dim * heads != hidden:
        raise UnsupportedModelError(
            "transformers-neuronx computes heads of hidden_size / num_attention_heads; this "
            f"model's config.json says head_dim {head_dim}"
        )
    if parameters.mode == "continuous" and kind not in CONTINUOUS_TYPES:
        raise UnsupportedModelError(
            f"mode=continuous: only Llama and Mistral batch continuously, not {kind}; mode=sample"
        )
    if parameters.mode == "sample" and parameters.batch_size != 1:
        raise UnsupportedModelError(
            f"batch_size={parameters.batch_size}: mode=sample runs one request at a time; "
            "compile with batch_size 1"
        )
    if parameters.n_positions < _FEWEST_POSITIONS:
        raise UnsupportedModelError(
            f"n_positions={parameters.n_positions} is too short; it can be {_FEWEST_POSITIONS}"
        )
    if parameters.context_buckets[-1] < 2:
        raise UnsupportedModelError("context_buckets=1: the largest bucket must be at least 2")
    longest = config.get("max_position_embeddings") or config.get("n_positions")
    if kind in _LIMITED_TYPES and longest and parameters.n_positions > longest:
        raise UnsupportedModelError(
            f"n_positions={parameters.n_positions}: this model knows {longest} positions"
        )
    if parameters.context_buckets[-1] > parameters.n_positions:
        raise UnsupportedModelError(
            f"context_buckets: {parameters.context_buckets[-1]} is more than n_positions="
            f"{parameters.n_positions}; the largest bucket can be n_positions"
        )
    if parameters.quantization == "s8" and parameters.amp == "f32":
        raise UnsupportedModelError("quantization=s8 needs amp f16 or bf16, not f32")
    if parameters.gqa == "shard-over-batch" and parameters.batch_size % parameters.tp_degree:
        raise UnsupportedModelError(
            f"gqa=shard-over-batch: batch_size={parameters.batch_size} is no multiple of "
            f"tp_degree={parameters.tp_degree}"
        )
