"""`MistralForSampling`."""

from __future__ import annotations

from typing import Any, ClassVar

from neuron_double.journal import swallow

from transformers_neuronx.llama.config import LlamaConfig, MistralConfig
from transformers_neuronx.llama.model import LlamaForSampling


class MistralForSampling(LlamaForSampling):
    """Llama with a sliding window."""

    config_class: ClassVar[type[LlamaConfig]] = MistralConfig

    def __init__(self, config: Any, **kwargs: Any) -> None:
        if "prefixed_length" in kwargs:
            swallow(type(self).__name__, {"prefixed_length": kwargs.pop("prefixed_length")})
        super().__init__(config, **kwargs)
