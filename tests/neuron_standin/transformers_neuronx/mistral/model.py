"""`MistralForSampling`."""

from __future__ import annotations

from typing import ClassVar

from transformers_neuronx.llama.config import LlamaConfig, MistralConfig
from transformers_neuronx.llama.model import LlamaForSampling


class MistralForSampling(LlamaForSampling):
    """Llama with a sliding window."""

    config_class: ClassVar[type[LlamaConfig]] = MistralConfig
