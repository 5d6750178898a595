"""The class that belongs to a checkpoint."""

from __future__ import annotations

from typing import Any

from transformers import AutoConfig

from transformers_neuronx.bloom.model import BloomForSampling
from transformers_neuronx.gpt2.model import GPT2ForSamplingWithContextBroadcasting
from transformers_neuronx.gptj.model import GPTJForSampling
from transformers_neuronx.gptneox.model import GPTNeoXForSampling
from transformers_neuronx.llama.model import LlamaForSampling
from transformers_neuronx.mistral.model import MistralForSampling
from transformers_neuronx.mixtral.model import MixtralForSampling
from transformers_neuronx.opt.model import OPTForSampling

CLASSES = {
    "bloom": BloomForSampling,
    "code_llama": LlamaForSampling,
    "gpt2": GPT2ForSamplingWithContextBroadcasting,
    "gpt_neox": GPTNeoXForSampling,
    "gptj": GPTJForSampling,
    "llama": LlamaForSampling,
    "mistral": MistralForSampling,
    "mixtral": MixtralForSampling,
    "opt": OPTForSampling,
}


class NeuronAutoModelForCausalLM:
    """Chooses by `model_type`."""

    @classmethod
    def from_pretrained(cls, pretrained_model_path: Any, *args: Any, **kwargs: Any) -> Any:
        """Raises AssertionError for a type that no class is for."""
        model_type = AutoConfig.from_pretrained(pretrained_model_path).model_type
        assert model_type in CLASSES, f"{model_type} is not one of {sorted(CLASSES)}"
        return CLASSES[model_type].from_pretrained(pretrained_model_path, *args, **kwargs)
