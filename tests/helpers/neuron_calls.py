"""Driving the double of transformers-neuronx as its documented protocol asks for."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

CLASSES = {
    "llama": "LlamaForSampling",
    "mistral": "MistralForSampling",
    "mixtral": "MixtralForSampling",
    "gpt2": "GPT2ForSamplingWithContextBroadcasting",
    "gpt_neox": "GPTNeoXForSampling",
    "gptj": "GPTJForSampling",
    "opt": "OPTForSampling",
    "bloom": "BloomForSampling",
}


def make_model(path: Path, architecture: str = "llama", **arguments: Any) -> Any:
    """A model of the double, before `to_neuron()`; two cores and 64 positions by default."""
    import transformers_neuronx  # after the fixture has put it on the path

    arguments = {"tp_degree": 2, "n_positions": 64, **arguments}
    return getattr(transformers_neuronx, CLASSES[architecture]).from_pretrained(path, **arguments)


def continuous(slots: int, **arguments: Any) -> dict[str, Any]:
    """Arguments of a model with continuous batching."""
    from transformers_neuronx import ContinuousBatchingConfig, NeuronConfig

    shared = ContinuousBatchingConfig(batch_size_for_shared_caches=slots)
    return {
        "batch_size": slots,
        "neuron_config": NeuronConfig(continuous_batching=shared),
        **arguments,
    }


def prompt_call(prompts: Mapping[int, Sequence[int]]) -> dict[str, torch.Tensor]:
    """Arguments of `forward()` that prefill slots with prompts."""
    width = max(map(len, prompts.values()))
    return {
        "input_ids": torch.tensor([[*p, *[0] * (width - len(p))] for p in prompts.values()]),
        "cache_ids": torch.tensor(
            [[*range(len(p)), *[0] * (width - len(p))] for p in prompts.values()]
        ),
        "start_ids": torch.tensor(list(prompts)),
    }


def token_call(texts: Mapping[int, Sequence[int]]) -> dict[str, torch.Tensor]:
    """Arguments of `forward()` that run the last token of each slot's text."""
    return {
        "input_ids": torch.tensor([[text[-1]] for text in texts.values()]),
        "cache_ids": torch.tensor([[len(text) - 1] for text in texts.values()]),
        "start_ids": torch.tensor(list(texts)),
    }


class Slots:
    """Greedy texts in the slots of one model."""

    def __init__(self, model: Any) -> None:
        self._model = model
        self.texts: dict[int, list[int]] = {}

    def prefill(self, prompts: Mapping[int, Sequence[int]]) -> None:
        """Begin texts; each gets its first token."""
        logits = self._model.forward(**prompt_call(prompts))
        for (slot, prompt), row in zip(prompts.items(), logits, strict=True):
            self.texts[slot] = [*prompt, int(row.argmax())]

    def decode(self, slots: Iterable[int] | None = None) -> None:
        """One token for these slots; for all by default."""
        chosen = {slot: self.texts[slot] for slot in (self.texts if slots is None else slots)}
        logits = self._model.forward(**token_call(chosen))
        for slot, row in zip(chosen, logits, strict=True):
            self.texts[slot].append(int(row.argmax()))
