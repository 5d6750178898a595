"""The `llama.cpp` loader: GGUF models, in any quantization, on CPUs and on what llama.cpp is built
for. Nothing of torch is imported.

llama.cpp computes; scheduling, sampling and prefix reuse are this engine's: one `llama_decode` is
one step, prompts and next tokens of many sequences side by side.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

import numpy as np
import numpy.typing as npt

from tgwui_k8s.contract import (
    Batch,
    Capabilities,
    KVLayout,
    LoadProgress,
    LoadRequest,
    ModelInfo,
    ProgressCallback,
    Sampler,
)
from tgwui_k8s.errors import LoaderUnavailableError, UnsupportedModelError
from tgwui_k8s.runtime.limits import cpu_quota
from tgwui_k8s.runtime.llama_cpp.lanes import Lanes
from tgwui_k8s.runtime.llama_cpp.options import OPTIONS, LlamaCppOptions, parse_options
from tgwui_k8s.runtime.llama_cpp.plan import BLOCK_SIZE, GGUFShape, batch_size, plan_layout
from tgwui_k8s.runtime.llama_cpp.threads import wait_briefly
from tgwui_k8s.runtime.prefetching import reading_ahead
from tgwui_k8s.runtime.warm_up import compute_a_little
from tgwui_k8s.storage.gguf_files import parts_of, pick_gguf
from tgwui_k8s.storage.gguf_header import file_type_name
from tgwui_k8s.storage.gguf_metadata import read_metadata
from tgwui_k8s.storage.identity import fingerprint
from tgwui_k8s.storage.weights import WeightFiles

if TYPE_CHECKING:
    from tgwui_k8s.runtime.llama_cpp.model import LlamaContext, LlamaModel

Logits = npt.NDArray[np.float32]

_SPARE_LANES = 128
"""Sequences of llama.cpp beyond the running ones: they hold what the prefix cache remembers."""


class LlamaCppRunner:
    """contract.ModelRunner over a llama.cpp context."""

    def __init__(
        self, context: LlamaContext, info: ModelInfo, layout: KVLayout, num_lanes: int
    ) -> None:
        self.info = info
        self.layout = layout
        self.sampler: Sampler | None = None
        self._context = context
        self._lanes = Lanes(
            context,
            num_lanes=num_lanes,
            block_size=layout.block_size,
            keeps_blocks=layout.prefix_caching,
        )

    def execute(self, batch: Batch) -> Logits:
        """One call into llama.cpp for the whole batch."""
        parts = batch.sequences
        places = [self._lanes.place(part) for part in parts]
        lengths = [len(part.token_ids) for part in parts]
        token_ids = np.array([token for part in parts for token in part.token_ids], np.int32)
        starts = np.repeat([part.start for part in parts], lengths)
        first_rows = np.repeat(np.cumsum([0, *lengths[:-1]]), lengths)
        offsets = np.arange(len(token_ids)) - first_rows
        wanted_from = np.repeat(
            [n - part.num_logits for n, part in zip(lengths, parts, strict=True)], lengths
        )
        return self._context.decode(
            token_ids,
            (starts + offsets).astype(np.int32),
            np.repeat(places, lengths).astype(np.int32),
            (offsets >= wanted_from).astype(np.int8),
        )

    def warm_up(self) -> None:
        """A short prompt and one token."""
        compute_a_little(self)

    def close(self) -> None:
        """Free weights and KV cache."""
        self._context.close()


class LlamaCppLoader:
    """contract.Loader for GGUF files."""

    name: ClassVar[str] = "llama.cpp"
    options: ClassVar[dict[str, str]] = OPTIONS

    def load(self, request: LoadRequest, progress: ProgressCallback) -> LlamaCppRunner:
        """Map the file, plan the cache.

        Raises a `StartupError` that names the file or the option, and what to do.
        """
        options = parse_options(request.options)
        wait_briefly()
        file = pick_gguf(request.path)
        shape = GGUFShape(dict(read_metadata(file, with_vocabulary=False)))
        parts = tuple(parts_of(file))
        weight_bytes = sum(part.stat().st_size for part in parts)
        use_gpu = _use_gpu(request, options)
        weights = WeightFiles("gguf", parts, {}, weight_bytes)
        max_model_len = shape.max_model_len(options, request.max_model_len)
        with reading_ahead(request, weights, progress) as note:
            model = _load_model(parts, options, use_gpu, weight_bytes, note)
        try:
            layout = plan_layout(
                request,
                options,
                shape,
                weight_bytes=weight_bytes,
                vocab_size=model.vocab_size,
                use_gpu=use_gpu,
                keeps_prefixes=model.keeps_prefixes,
            )
            num_lanes = _num_lanes(request, keeps_prefixes=model.keeps_prefixes)
            context = _make_context(model, request, options, layout, num_lanes)
            numerics = _numerics(request, options, shape, layout)
            info = _describe(numerics, weights, model, shape, max_model_len, use_gpu)
        except BaseException:
            model.close()
            raise
        return LlamaCppRunner(context, info, layout, num_lanes)


def _use_gpu(request: LoadRequest, options: LlamaCppOptions) -> bool:
    import llama_cpp

    can_offload = bool(llama_cpp.llama_supports_gpu_offload())
    wants = request.device == "cuda" or bool(options.n_gpu_layers)
    if wants and not can_offload:
        raise LoaderUnavailableError(
            "llama-cpp-python is built for CPUs here; build it for the GPU: "
            "CMAKE_ARGS=-DGGML_CUDA=on pip install --force-reinstall --no-cache-dir "
            "llama-cpp-python (docs/llama-cpp.md)"
        )
    if request.dtype not in ("auto", "float32"):
        raise UnsupportedModelError(
            f"llama.cpp uses the weights as the GGUF file holds them: leave out --dtype "
            f"{request.dtype}, or take a GGUF of that type"
        )
    return can_offload and request.device != "cpu" and options.n_gpu_layers != 0


def _load_model(
    parts: tuple[Path, ...],
    options: LlamaCppOptions,
    use_gpu: bool,
    num_bytes: int,
    progress: ProgressCallback,
) -> LlamaModel:
    from tgwui_k8s.runtime.llama_cpp.model import LlamaModel

    progress(LoadProgress("loading", 0, num_bytes))
    model = LlamaModel(
        parts,
        options,
        use_gpu=use_gpu,
        on_progress=lambda share: progress(
            LoadProgress("loading", min(num_bytes, int(share * num_bytes)), num_bytes)
        ),
    )
    progress(LoadProgress("loading", num_bytes, num_bytes))
    if not model.can_generate:
        model.close()
        raise UnsupportedModelError(
            f"{parts[0]} generates no text from left to right (an embedding, encoder or diffusion "
            "model), and this loader runs no other"
        )
    return model


def _num_lanes(request: LoadRequest, *, keeps_prefixes: bool) -> int:
    from tgwui_k8s.runtime.llama_cpp.model import MAX_LANES

    if request.max_num_seqs > MAX_LANES:
        raise UnsupportedModelError(
            f"llama.cpp runs {MAX_LANES} sequences at most: lower --max-num-seqs"
        )
    spare = _SPARE_LANES if keeps_prefixes else 0
    return min(MAX_LANES, request.max_num_seqs + spare)


def _make_context(
    model: LlamaModel,
    request: LoadRequest,
    options: LlamaCppOptions,
    layout: KVLayout,
    num_lanes: int,
) -> LlamaContext:
    from tgwui_k8s.runtime.llama_cpp.model import LlamaContext

    return LlamaContext(
        model,
        options,
        num_cells=layout.groups[0].num_blocks * BLOCK_SIZE,
        num_lanes=num_lanes,
        batch_size=batch_size(request, options),
        num_threads=request.num_threads or cpu_quota(),
    )


def _numerics(
    request: LoadRequest, options: LlamaCppOptions, shape: GGUFShape, layout: KVLayout
) -> tuple[str, ...]:
    """What decides the logits beside the file."""
    from llama_cpp import __version__

    num_cells = layout.groups[0].num_blocks * BLOCK_SIZE
    is_long = shape.takes_long_factors(options, num_cells)
    return (
        f"llama.cpp {__version__}",
        str(sorted(request.options.items())),
        *(("long RoPE factors",) if is_long else ()),
    )


def _describe(
    numerics: tuple[str, ...],
    weights: WeightFiles,
    model: LlamaModel,
    shape: GGUFShape,
    max_model_len: int,
    use_gpu: bool,
) -> ModelInfo:
    from llama_cpp import __version__, llama_print_system_info

    # Guesses that prove wrong must be taken back, which needs memory that can be cut.
    lacking = () if model.keeps_prefixes else ("prompt_lookup_num_tokens",)
    template = shape.metadata.get("tokenizer.chat_template")
    return ModelInfo(
        loader=LlamaCppLoader.name,
        architecture=shape.architecture,
        dtype="float32",
        device="cuda" if use_gpu else "cpu",
        max_model_len=max_model_len,
        vocab_size=model.vocab_size,
        eos_token_ids=model.end_tokens(),
        num_parameters=model.num_parameters,
        weight_bytes=model.num_bytes,
        quantization=file_type_name(shape.metadata.get("general.file_type")),
        fingerprint=fingerprint(weights.files, {}, numerics),
        capabilities=Capabilities(unsupported_params=lacking),
        chat_template=template if isinstance(template, str) else None,
        details={
            "llama_cpp_python": __version__,
            "system": llama_print_system_info().decode(errors="replace").strip(" |"),
        },
    )
