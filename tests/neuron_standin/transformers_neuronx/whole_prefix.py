"""The classes that Transformers computes for the double: static batches only."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import torch
from neuron_double.decoder import WholePrefixDecoder
from neuron_double.journal import swallow
from transformers import AutoModelForCausalLM

from transformers_neuronx.config import NeuronConfig
from transformers_neuronx.forwarding import ForwardingModel

POSITIONS = 2048


class WholePrefixModel(ForwardingModel):
    """A model that runs a row's whole text in every step."""

    checks_positions = True

    def __init__(
        self,
        config: Any,
        *,
        n_positions: int | list[int] = POSITIONS,
        batch_size: int | list[int] = 1,
        amp: str = "f32",
        tp_degree: int = 2,
        context_length_estimate: int | list[int] | None = None,
        context_unroll: int | None = None,
        unroll: int | None = None,
        neuron_config: NeuronConfig | None = None,
        **kwargs: Any,
    ) -> None:
        swallow(type(self).__name__, kwargs)
        longest = n_positions if isinstance(n_positions, int) else max(n_positions)
        limit = getattr(config, "max_position_embeddings", longest)
        if self.checks_positions and longest > limit:
            raise ValueError(
                f"n_positions ({longest}) should not exceed max_position_embeddings ({limit})"
            )
        super().__init__(
            config,
            n_positions=n_positions,
            batch_size=batch_size,
            amp=amp,
            tp_degree=tp_degree,
            context_length_estimate=context_length_estimate,
            neuron_config=neuron_config,
            unroll=(unroll, context_unroll),
        )

    def _identity(self) -> dict[str, Any]:
        return self.config.to_dict()

    def _make_decoder(self, weights: dict[str, torch.Tensor]) -> WholePrefixDecoder:
        model = AutoModelForCausalLM.from_pretrained(self._weights_file().parent)
        run = _runner(model.to(self.dtype_of_amp).eval())
        return WholePrefixDecoder(run, self.batch_sizes[-1], self.max_positions)


def _runner(model: torch.nn.Module) -> Callable[[torch.Tensor, torch.Tensor], torch.Tensor]:
    """Positions count the tokens that are seen, in models that can be told so."""
    takes_positions = "position_ids" in inspect.signature(model.forward).parameters

    def run(ids: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        positions = (mask.cumsum(dim=1) - 1).clamp(min=0)
        extra = {"position_ids": positions} if takes_positions else {}
        return model(input_ids=ids, attention_mask=mask, use_cache=False, **extra).logits

    return run
