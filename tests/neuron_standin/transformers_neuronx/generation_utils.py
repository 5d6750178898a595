"""A model of this library behind Transformers' `generate()`."""

from __future__ import annotations

from typing import Any

import torch
from transformers import GenerationMixin, PretrainedConfig, PreTrainedModel
from transformers.modeling_outputs import CausalLMOutputWithPast


class HuggingFaceGenerationModelAdapter(PreTrainedModel, GenerationMixin):
    """Static batches; rows padded on the left are told by the attention mask."""

    def __init__(self, config: PretrainedConfig, model: Any) -> None:
        super().__init__(config)
        self.model = model
        self._length = 0

    @property
    def device(self) -> torch.device:
        """Where inputs belong."""
        return torch.device("cpu")

    def reset_generation(self) -> None:
        """The next call is a prompt."""
        self._length = 0

    def generate(self, *args: Any, **kwargs: Any) -> Any:
        """As Transformers does it, from position 0."""
        self.reset_generation()
        return super().generate(*args, **{"use_cache": False, **kwargs})

    def prepare_inputs_for_generation(
        self, input_ids: torch.Tensor, attention_mask: torch.Tensor | None = None, **kwargs: Any
    ) -> dict[str, Any]:
        """The whole prompt at first, the last token after that."""
        start_ids = None if attention_mask is None else attention_mask.max(dim=1).indices
        if self._length:
            cache_ids = torch.tensor([input_ids.shape[1] - 1])
            input_ids = input_ids[:, -1:]
        else:
            cache_ids = torch.arange(input_ids.shape[1])
        return {"input_ids": input_ids, "cache_ids": cache_ids, "start_ids": start_ids}

    def forward(
        self,
        input_ids: torch.Tensor,
        cache_ids: torch.Tensor,
        start_ids: torch.Tensor | None = None,
        **kwargs: Any,
    ) -> CausalLMOutputWithPast:
        """Logits (batch, 1, vocabulary)."""
        logits = self.model.forward(input_ids, cache_ids, start_ids)
        self._length = int(cache_ids[-1]) + 1
        return CausalLMOutputWithPast(logits=logits[:, None, :], past_key_values=None)
