"""llama.cpp by its low-level batch calls: one `llama_decode` a step for all sequences."""

from __future__ import annotations

import ctypes
import os
from pathlib import Path

import llama_cpp
import numpy as np
import numpy.typing as npt

MAX_SEQUENCES = 64
CONTEXT = 512


class Engine:
    """The variant is the GGUF's kind: `MODEL/gguf/BF16.gguf`, made by `models.py --gguf`."""

    def __init__(self, model: Path, variant: str) -> None:
        llama_cpp.llama_backend_init()
        path = str(model / "gguf" / f"{variant}.gguf").encode()
        self._model = llama_cpp.llama_model_load_from_file(
            path, llama_cpp.llama_model_default_params()
        )
        params = llama_cpp.llama_context_default_params()
        params.n_ctx = MAX_SEQUENCES * CONTEXT
        params.n_batch = params.n_ubatch = 512
        params.n_seq_max = MAX_SEQUENCES
        params.n_threads = params.n_threads_batch = len(os.sched_getaffinity(0))
        params.kv_unified = True
        self._context = llama_cpp.llama_init_from_model(self._model, params)
        vocabulary = llama_cpp.llama_model_get_vocab(self._model)
        self._vocab_size = llama_cpp.llama_vocab_n_tokens(vocabulary)
        self._batch = llama_cpp.llama_batch_init(512, 0, 1)

    def generate(self, prompts: list[list[int]], num_new: int) -> None:
        """See `child.Engine`: prompts in chunks of a batch, then all sequences step by step."""
        llama_cpp.llama_memory_clear(llama_cpp.llama_get_memory(self._context), True)
        newest = [self._prefill(number, prompt) for number, prompt in enumerate(prompts)]
        lengths = [len(prompt) for prompt in prompts]
        for _ in range(num_new - 1):
            rows = [(newest[i], lengths[i], i, True) for i in range(len(prompts))]
            self._decode(rows)
            newest = [self._greedy(i) for i in range(len(prompts))]
            lengths = [length + 1 for length in lengths]

    def logits(self, token_ids: list[int]) -> npt.NDArray[np.float32]:
        """See `child.Engine`."""
        llama_cpp.llama_memory_clear(llama_cpp.llama_get_memory(self._context), True)
        self._decode([(token, place, 0, True) for place, token in enumerate(token_ids)])
        return np.stack([self._row(place).copy() for place in range(len(token_ids))])

    def _prefill(self, number: int, prompt: list[int]) -> int:
        rows = [
            (token, place, number, place == len(prompt) - 1) for place, token in enumerate(prompt)
        ]
        for start in range(0, len(rows), 512):
            self._decode(rows[start : start + 512])
        return self._greedy(-1)

    def _decode(self, rows: list[tuple[int, int, int, bool]]) -> None:
        batch = self._batch
        batch.n_tokens = len(rows)
        for place, (token, position, sequence, wants_logits) in enumerate(rows):
            batch.token[place] = token
            batch.pos[place] = position
            batch.n_seq_id[place] = 1
            batch.seq_id[place][0] = sequence
            batch.logits[place] = wants_logits
        assert llama_cpp.llama_decode(self._context, batch) == 0

    def _row(self, place: int) -> npt.NDArray[np.float32]:
        pointer = llama_cpp.llama_get_logits_ith(self._context, place)
        address = ctypes.cast(pointer, ctypes.POINTER(ctypes.c_float))
        return np.ctypeslib.as_array(address, shape=(self._vocab_size,))

    def _greedy(self, place: int) -> int:
        return int(self._row(place).argmax())
