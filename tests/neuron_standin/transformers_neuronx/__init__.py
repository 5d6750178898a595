"""A double of transformers-neuronx for tests; see `neuron_double` for what it does and does not.

It is found by this name only where a test put `tests/neuron_standin` on the path.
"""

from importlib.metadata import version

from transformers_neuronx.config import (
    ContinuousBatchingConfig,
    GenerationConfig,
    NeuronConfig,
    QuantizationConfig,
    SparseAttnConfig,
)
from transformers_neuronx.constants import GQA, Layout
from transformers_neuronx.llama.model import LlamaForSampling
from transformers_neuronx.mistral.model import MistralForSampling

__version__ = version("transformers-neuronx")

__all__ = [
    "GQA",
    "ContinuousBatchingConfig",
    "GenerationConfig",
    "Layout",
    "LlamaForSampling",
    "MistralForSampling",
    "NeuronConfig",
    "QuantizationConfig",
    "SparseAttnConfig",
]
