"""A GGUF model and its context through llama.cpp's C API, as llama-cpp-python binds it. No torch.

Needs the package `llama-cpp-python`; import it only where the loader is chosen.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import llama_cpp
import numpy as np
import numpy.typing as npt

from tgwui_k8s.errors import (
    BrokenModelError,
    EngineUnavailableError,
    NotEnoughMemoryError,
    StartupError,
    UnsupportedModelError,
)
from tgwui_k8s.runtime.llama_cpp.log import collect_errors, route_log
from tgwui_k8s.runtime.llama_cpp.options import (
    CACHE_TYPES,
    FLASH_ATTENTION,
    ROPE_SCALINGS,
    SPLIT_MODES,
    LlamaCppOptions,
)

Logits = npt.NDArray[np.float32]
Integers = npt.NDArray[np.int32]

MAX_LANES = int(llama_cpp.llama_max_parallel_sequences())
"""Sequences that one context can tell apart."""

_NUMA_DISTRIBUTE = 1


class LlamaModel:
    """The weights and the vocabulary of one GGUF file, or of one set of parts."""

    def __init__(
        self,
        parts: Sequence[Path],
        options: LlamaCppOptions,
        *,
        use_gpu: bool,
        on_progress: Callable[[float], None] | None = None,
        vocab_only: bool = False,
    ) -> None:
        """Load them. `on_progress` gets the share that is loaded, 0 to 1.

        Raises `BrokenModelError`, or `UnsupportedModelError` for an architecture it does not
        know, with llama.cpp's own reason.
        """
        route_log()
        llama_cpp.llama_backend_init()
        if options.numa:
            llama_cpp.llama_numa_init(_NUMA_DISTRIBUTE)
        params, kept = _model_params(options, use_gpu, on_progress)
        params.vocab_only = vocab_only
        names = [str(part).encode() for part in parts]
        with collect_errors() as errors:
            self.handle = llama_cpp.llama_model_load_from_splits(
                (ctypes.c_char_p * len(names))(*names), len(names), params
            )
        del kept
        if not self.handle:
            raise _why_not_loaded(parts[0], errors)
        self.vocab = llama_cpp.llama_model_get_vocab(self.handle)
        self.vocab_size = int(llama_cpp.llama_vocab_n_tokens(self.vocab))

    @property
    def num_parameters(self) -> int:
        """Of all tensors."""
        return int(llama_cpp.llama_model_n_params(self.handle))

    @property
    def num_bytes(self) -> int:
        """Of all tensors."""
        return int(llama_cpp.llama_model_size(self.handle))

    @property
    def can_generate(self) -> bool:
        """A decoder without an encoder before it, that writes from left to right."""
        return bool(
            llama_cpp.llama_model_has_decoder(self.handle)
            and not llama_cpp.llama_model_has_encoder(self.handle)
            and not llama_cpp.llama_model_is_diffusion(self.handle)
        )

    @property
    def keeps_prefixes(self) -> bool:
        """The cells of a sequence that has ended stay whole, and may be cut at any position.

        Not so with recurrent states, and with sliding windows, whose cells are written over.
        """
        return not (
            llama_cpp.llama_model_is_recurrent(self.handle)
            or llama_cpp.llama_model_is_hybrid(self.handle)
            or llama_cpp.llama_model_n_swa(self.handle) > 0
        )

    def end_tokens(self) -> tuple[int, ...]:
        """Every token after which llama.cpp stops: end of sequence, of turn, of message."""
        is_end = llama_cpp.llama_vocab_is_eog
        return tuple(token for token in range(self.vocab_size) if is_end(self.vocab, token))

    def tokenize(self, text: str, *, add_special: bool = True) -> list[int]:
        """Token ids as llama.cpp's own tokenizer gives them; tests compare ours with it."""
        data = text.encode()
        ids = (llama_cpp.llama_token * (len(data) + 8))()
        count = llama_cpp.llama_tokenize(
            self.vocab, data, len(data), ids, len(ids), add_special, True
        )
        return list(ids[:count])

    def close(self) -> None:
        """Free the weights."""
        if self.handle:
            llama_cpp.llama_model_free(self.handle)
            self.handle = None


class LlamaContext:
    """KV cells and one forward. Its sequences are the lanes of `runtime.llama_cpp.lanes`."""

    def __init__(
        self,
        model: LlamaModel,
        options: LlamaCppOptions,
        *,
        num_cells: int,
        num_lanes: int,
        batch_size: int,
        num_threads: int,
    ) -> None:
        """Raises `NotEnoughMemoryError`, or `UnsupportedModelError` for options that do not fit
        the model, with llama.cpp's own reason.
        """
        self._model = model
        self._batch_size = batch_size
        params = llama_cpp.llama_context_default_params()
        params.n_ctx = num_cells
        params.n_seq_max = num_lanes
        # The library asserts room for the logits of one token of every lane.
        params.n_batch = max(batch_size, num_lanes)
        params.n_ubatch = min(options.ubatch_size, batch_size)
        params.n_threads = num_threads
        params.n_threads_batch = options.threads_batch or num_threads
        # One buffer for all lanes: a step is one batch, whoever is in it, and cells can be shared.
        params.kv_unified = True
        params.swa_full = False
        params.no_perf = True
        params.offload_kqv = not options.no_kv_offload
        params.flash_attn_type = FLASH_ATTENTION[options.flash_attn]
        params.type_k, params.type_v = (CACHE_TYPES[name][0] for name in options.cache_types)
        _set_rope(params, options)
        with collect_errors() as errors:
            self._handle = llama_cpp.llama_init_from_model(model.handle, params)
        if not self._handle:
            raise _why_no_context(num_cells, errors)
        self._memory = llama_cpp.llama_get_memory(self._handle)
        self._lane_ids = np.arange(num_lanes, dtype=np.int32)
        self._ones = np.ones(batch_size, np.int32)

    def decode(
        self, token_ids: Integers, positions: Integers, lanes: Integers, wants: npt.NDArray[np.int8]
    ) -> Logits:
        """Compute tokens; float32 [number of non-zero `wants`, vocabulary].

        All arrays have one entry a token; the tokens of a lane go on where it ends.
        Raises `EngineUnavailableError` where llama.cpp fails: nothing in memory is certain then.
        """
        slices = [
            slice(first, first + self._batch_size)
            for first in range(0, len(token_ids), self._batch_size)
        ]
        rows = [self._decode(token_ids[s], positions[s], lanes[s], wants[s]) for s in slices]
        return rows[0] if len(rows) == 1 else np.concatenate(rows)

    def remove(self, lane: int, start: int, stop: int) -> None:
        """See `lanes.CellMemory`."""
        llama_cpp.llama_memory_seq_rm(self._memory, lane, start, stop)

    def remove_all(self, lane: int) -> None:
        """See `lanes.CellMemory`."""
        llama_cpp.llama_memory_seq_rm(self._memory, lane, -1, -1)

    def share(self, source: int, lane: int, start: int, stop: int) -> None:
        """See `lanes.CellMemory`."""
        llama_cpp.llama_memory_seq_cp(self._memory, source, lane, start, stop)

    def compute(self, lane: int, start: int, token_ids: Sequence[int]) -> None:
        """See `lanes.CellMemory`."""
        count = len(token_ids)
        self.decode(
            np.array(token_ids, np.int32),
            np.arange(start, start + count, dtype=np.int32),
            np.full(count, lane, np.int32),
            np.zeros(count, np.int8),
        )

    def close(self) -> None:
        """Free the cells, then the weights."""
        if self._handle:
            llama_cpp.llama_free(self._handle)
            self._handle = None
        self._model.close()

    def _decode(
        self, token_ids: Integers, positions: Integers, lanes: Integers, wants: npt.NDArray[np.int8]
    ) -> Logits:
        # Every token belongs to one lane: a pointer to that lane's number.
        lane_pointers = self._lane_ids.ctypes.data + lanes.astype(np.uint64) * 4
        batch = llama_cpp.llama_batch(
            len(token_ids),
            _pointer(token_ids, ctypes.c_int32),
            None,
            _pointer(positions, ctypes.c_int32),
            _pointer(self._ones, ctypes.c_int32),
            _pointer(lane_pointers, ctypes.POINTER(ctypes.c_int32)),
            _pointer(wants, ctypes.c_int8),
        )
        with collect_errors() as errors:
            code = llama_cpp.llama_decode(self._handle, batch)
        if code != 0:
            raise EngineUnavailableError(f"llama_decode gave {code}: {_last_reason(errors)}")
        count = int(np.count_nonzero(wants))
        if count == 0:
            return np.zeros((0, self._model.vocab_size), np.float32)
        rows = llama_cpp.llama_get_logits(self._handle)
        # A copy: the next step writes over the library's.
        return np.ctypeslib.as_array(rows, (count, self._model.vocab_size)).copy()


def _why_not_loaded(file: Path, errors: Sequence[str]) -> StartupError:
    """The error for a file that llama.cpp refused."""
    reason = _last_reason(errors)
    if "unknown model architecture" in reason:
        return UnsupportedModelError(f"{file}: {reason}; it may need a newer llama-cpp-python")
    return BrokenModelError(f"llama.cpp cannot load {file}: {reason}")


def _why_no_context(num_cells: int, errors: Sequence[str]) -> StartupError:
    reason = _last_reason(errors)
    if "alloc" in reason or "memory" in reason:
        return NotEnoughMemoryError(
            f"llama.cpp cannot make a context of {num_cells} cells: {reason}; lower "
            "--kv-cache-memory or --max-model-len, or put fewer layers on the GPU"
        )
    return UnsupportedModelError(f"llama.cpp cannot make a context: {reason}")


def _model_params(
    options: LlamaCppOptions, use_gpu: bool, on_progress: Callable[[float], None] | None
) -> tuple[Any, list[Any]]:
    """The library's structure, and what must live as long as it is used."""
    params = llama_cpp.llama_model_default_params()
    params.n_gpu_layers = 0 if not use_gpu else -1
    if use_gpu and options.n_gpu_layers is not None:
        params.n_gpu_layers = options.n_gpu_layers
    if options.split_mode is not None:
        params.split_mode = SPLIT_MODES[options.split_mode]
    if options.main_gpu is not None:
        params.main_gpu = options.main_gpu
    params.load_mode = {
        (False, False): llama_cpp.LLAMA_LOAD_MODE_MMAP,
        (False, True): llama_cpp.LLAMA_LOAD_MODE_MMAP_MLOCK,
        (True, False): llama_cpp.LLAMA_LOAD_MODE_NONE,
        (True, True): llama_cpp.LLAMA_LOAD_MODE_MLOCK,
    }[options.no_mmap, options.mlock]
    kept: list[Any] = []
    if options.tensor_split is not None:
        shares = (ctypes.c_float * llama_cpp.llama_max_devices())(*options.tensor_split)
        params.tensor_split = shares
        kept.append(shares)
    if on_progress is not None:

        def report(share: float, _: object) -> bool:
            on_progress(share)
            return True

        params.progress_callback = llama_cpp.llama_progress_callback(report)
        kept.append(params.progress_callback)
    return params, kept


def _set_rope(params: Any, options: LlamaCppOptions) -> None:
    if options.rope_freq_base is not None:
        params.rope_freq_base = options.rope_freq_base
    if options.freq_scale is not None:
        params.rope_freq_scale = options.freq_scale
    if options.rope_scaling is not None:
        params.rope_scaling_type = ROPE_SCALINGS[options.rope_scaling]
    if options.yarn_orig_ctx is not None:
        params.yarn_orig_ctx = options.yarn_orig_ctx


def _pointer(array: npt.NDArray[Any], kind: Any) -> Any:
    return array.ctypes.data_as(ctypes.POINTER(kind))


def _last_reason(errors: Sequence[str]) -> str:
    """The first error says what is wrong; those after it say who gave up because of it."""
    return errors[0].split(": ", 1)[-1][:500] if errors else "it gave no reason"
