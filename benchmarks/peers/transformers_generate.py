"""Transformers: `model.generate` with sdpa, left-padded batches."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from transformers import AutoModelForCausalLM


class Engine:
    """In bfloat16; the variant is another dtype."""

    def __init__(self, model: Path, variant: str = "bfloat16") -> None:
        self._device = "cuda" if torch.cuda.is_available() else "cpu"
        torch.set_num_threads(len(os.sched_getaffinity(0)))
        self._model = AutoModelForCausalLM.from_pretrained(model, dtype=getattr(torch, variant))
        self._model.to(self._device)

    def generate(self, prompts: list[list[int]], num_new: int) -> None:
        """See `child.Engine`."""
        longest = max(map(len, prompts))
        ids = [[0] * (longest - len(prompt)) + prompt for prompt in prompts]
        mask = [[0] * (longest - len(prompt)) + [1] * len(prompt) for prompt in prompts]
        answer = self._model.generate(
            torch.tensor(ids, device=self._device),
            attention_mask=torch.tensor(mask, device=self._device),
            max_new_tokens=num_new,
            min_new_tokens=num_new,
            do_sample=False,
            pad_token_id=0,
        )
        assert answer.shape[1] == longest + num_new

    def logits(self, token_ids: list[int]) -> npt.NDArray[np.float32]:
        """See `child.Engine`."""
        with torch.no_grad():
            logits = self._model(torch.tensor([token_ids], device=self._device)).logits[0]
        return logits.float().cpu().numpy()
