"""Tiny checkpoints with their runner of ours and Transformers' own model beside it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from transformers import AutoModelForCausalLM, PreTrainedModel

from loaders.hf_transformers import TransformersLoader
from tests.helpers.versions import in_dtype
from tgwui_k8s.contract import LoadRequest
from tgwui_k8s.demo.tiny import make_checkpoint
from tgwui_k8s.runtime.transformers_runner import TransformersRunner

Logits = npt.NDArray[np.float32]


def load_request(folder: Path, **fields: Any) -> LoadRequest:
    """A request for the Transformers loader with a small cache; `fields` override."""
    defaults: dict[str, Any] = {
        "loader": "Transformers",
        "device": "cpu",
        "dtype": "float32",
        "max_num_seqs": 8,
        "max_num_batched_tokens": 128,
        "kv_cache_bytes": 16 << 20,
        "num_threads": 1,
    }
    return LoadRequest(model_path=str(folder), **{**defaults, **fields})


def load_runner(folder: Path, **fields: Any) -> TransformersRunner:
    """The loader's runner."""
    runner = TransformersLoader().load(load_request(folder, **fields), lambda _: None)
    assert isinstance(runner, TransformersRunner)
    return runner


def load_reference(folder: Path, dtype: torch.dtype = torch.float32) -> PreTrainedModel:
    """Transformers' own model with its own attention."""
    return AutoModelForCausalLM.from_pretrained(
        folder, **in_dtype(dtype), attn_implementation="eager"
    ).eval()


@dataclass(frozen=True)
class ModelPair:
    """The same checkpoint in our runner and in Transformers."""

    folder: Path
    runner: TransformersRunner
    reference: PreTrainedModel

    @classmethod
    def make(cls, folder: Path, architecture: str, **overrides: Any) -> ModelPair:
        """Write a checkpoint and load it twice, in float32."""
        make_checkpoint(folder, architecture, **overrides)
        return cls(folder, load_runner(folder), load_reference(folder))

    @torch.inference_mode()
    def expected(self, token_ids: Sequence[int]) -> Logits:
        """Transformers' logits at every position, computed whole and without a cache."""
        return self.reference(torch.tensor([list(token_ids)])).logits[0].float().numpy()

    @torch.inference_mode()
    def expected_tokens(self, prompt: Sequence[int], num_tokens: int) -> list[int]:
        """What Transformers' `generate` answers greedily."""
        ids = torch.tensor([list(prompt)])
        answer = self.reference.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            max_new_tokens=num_tokens,
            do_sample=False,
            eos_token_id=None,
        )
        return answer[0, ids.shape[1] :].tolist()


def random_tokens(num_tokens: int, seed: int) -> list[int]:
    """Ordinary token ids of the tiny tokenizer."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(6, 512, (num_tokens,), generator=generator).tolist()


def assert_close(actual: Logits, expected: Logits, *, tolerance: float = 2e-5) -> None:
    """Equal up to rounding: relative to the largest logit, and with the same best token."""
    assert actual.shape == expected.shape
    assert np.abs(actual - expected).max() <= tolerance * np.abs(expected).max()
    np.testing.assert_array_equal(actual.argmax(-1), expected.argmax(-1))
