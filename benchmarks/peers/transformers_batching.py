"""Transformers' continuous batching: `model.generate_batch`."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from transformers import AutoModelForCausalLM, GenerationConfig


class Engine:
    """In bfloat16 with its paged sdpa."""

    def __init__(self, model: Path) -> None:
        self._device = "cuda" if torch.cuda.is_available() else "cpu"
        torch.set_num_threads(len(os.sched_getaffinity(0)))
        self._model = AutoModelForCausalLM.from_pretrained(
            model, dtype=torch.bfloat16, attn_implementation="sdpa"
        )
        self._model.to(self._device).eval()

    def generate(self, prompts: list[list[int]], num_new: int) -> None:
        """See `child.Engine`."""
        config = GenerationConfig(
            max_new_tokens=num_new, do_sample=False, eos_token_id=-1, pad_token_id=0
        )
        answers = self._model.generate_batch(
            inputs=prompts, generation_config=config, progress_bar=False
        )
        assert all(len(answer.generated_tokens) == num_new for answer in answers.values())
        assert len(answers) == len(prompts)

    def logits(self, token_ids: list[int]) -> npt.NDArray[np.float32] | None:
        """Those of `transformers_generate`: it is the same model."""
        return None
