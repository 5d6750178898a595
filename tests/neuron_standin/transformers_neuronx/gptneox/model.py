"""`GPTNeoXForSampling`."""

from __future__ import annotations

from transformers_neuronx.sample_loop import NarrowSamplingModel
from transformers_neuronx.whole_prefix import WholePrefixModel


class GPTNeoXForSampling(WholePrefixModel, NarrowSamplingModel):
    """GPT-NeoX, which can neither save nor load compiled graphs."""
