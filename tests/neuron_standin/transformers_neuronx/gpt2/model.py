"""`GPT2ForSamplingWithContextBroadcasting`."""

from __future__ import annotations

from transformers_neuronx.base import SerializableModel
from transformers_neuronx.sample_loop import NarrowSamplingModel
from transformers_neuronx.whole_prefix import WholePrefixModel


class GPT2ForSamplingWithContextBroadcasting(
    SerializableModel, WholePrefixModel, NarrowSamplingModel
):
    """GPT-2."""
