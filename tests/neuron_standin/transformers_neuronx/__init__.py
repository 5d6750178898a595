"""A double of transformers-neuronx for tests; see `neuron_double` for what it does and does not.

It is found by this name only where a test put `tests/neuron_standin` on the path.
"""

from importlib.metadata import version

from transformers_neuronx.bloom.model import BloomForSampling
from transformers_neuronx.config import (
    ContinuousBatchingConfig,
    GenerationConfig,
    NeuronConfig,
    QuantizationConfig,
    SparseAttnConfig,
)
from transformers_neuronx.constants import GQA, Layout
from transformers_neuronx.generation_utils import HuggingFaceGenerationModelAdapter
from transformers_neuronx.gpt2.model import GPT2ForSamplingWithContextBroadcasting
from transformers_neuronx.gptj.model import GPTJForSampling
from transformers_neuronx.gptneox.model import GPTNeoXForSampling
from transformers_neuronx.llama.model import LlamaForSampling
from transformers_neuronx.mistral.model import MistralForSampling
from transformers_neuronx.mixtral.model import MixtralForSampling
from transformers_neuronx.modeling_auto import NeuronAutoModelForCausalLM
from transformers_neuronx.opt.model import OPTForSampling

__version__ = version("transformers-neuronx")

__all__ = [
    "GQA",
    "BloomForSampling",
    "ContinuousBatchingConfig",
    "GPT2ForSamplingWithContextBroadcasting",
    "GPTJForSampling",
    "GPTNeoXForSampling",
    "GenerationConfig",
    "HuggingFaceGenerationModelAdapter",
    "Layout",
    "LlamaForSampling",
    "MistralForSampling",
    "MixtralForSampling",
    "NeuronAutoModelForCausalLM",
    "NeuronConfig",
    "OPTForSampling",
    "QuantizationConfig",
    "SparseAttnConfig",
]
