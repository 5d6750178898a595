"""`MixtralForSampling`."""

from __future__ import annotations

from transformers_neuronx.base import SerializableModel
from transformers_neuronx.sample_loop import SamplingModel
from transformers_neuronx.whole_prefix import WholePrefixModel


class MixtralForSampling(SerializableModel, WholePrefixModel, SamplingModel):
    """Mixtral, with Llama's `sample()`."""

    checks_positions = False
