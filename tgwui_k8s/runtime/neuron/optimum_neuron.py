"""optimum-neuron behind our words: load an export, sample.

Written for 0.4 by its source. `generate()` is Transformers' with the device's own sampler inside:
it has no streamer, so that tokens are seen where it asks whether to stop. It draws from at most
256 tokens, and not from torch's generator: seeds have no effect.
"""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any, ClassVar

import torch

from tgwui_k8s.runtime.neuron.faults import explained
from tgwui_k8s.runtime.neuron.sampling import SampleCall

_MAX_TOP_K = 256
"""What exports are compiled for; a larger one is refused by the library."""


class OptimumNeuron:
    """One exported model. One call at a time: it has one KV cache."""

    ends_at_tokens: ClassVar[bool] = True
    lacking: ClassVar[tuple[str, ...]] = ("no_repeat_ngram_size",)

    def __init__(self, model: Any) -> None:
        """Use `load`."""
        self._model = model

    @classmethod
    def load(cls, folder: Path) -> OptimumNeuron:
        """Take the cores, read the weights and the compiled model. Never compiles."""
        with explained("loading onto the NeuronCores"):
            library = import_module("optimum.neuron")
            return cls(library.NeuronModelForCausalLM.from_pretrained(str(folder)))

    def sample(self, call: SampleCall, on_token: Callable[[int], None]) -> None:
        """Generate; `on_token` gets every new token, the end token included."""
        transformers = import_module("transformers")
        ids = torch.tensor([call.prompt], dtype=torch.int64)
        is_greedy = call.top_k == 1
        config = transformers.GenerationConfig(
            max_new_tokens=call.max_tokens,
            do_sample=not is_greedy,
            eos_token_id=list(call.end_token_ids) or None,
            pad_token_id=0,
            **({} if is_greedy else _drawing(call)),
        )

        class Watch(transformers.StoppingCriteria):  # type: ignore[name-defined]
            """Called after every token with the whole text so far."""

            def __call__(self, input_ids: torch.Tensor, scores: Any, **_: Any) -> torch.Tensor:
                on_token(int(input_ids[0, -1]))
                return torch.full((len(input_ids),), call.cancelled.is_set())

        self._model.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            generation_config=config,
            stopping_criteria=transformers.StoppingCriteriaList([Watch()]),
        )

    def close(self) -> None:
        """Forget the model. Its cores are free when the process has exited."""
        self._model = None


def _drawing(call: SampleCall) -> dict[str, Any]:
    return {
        "top_k": min(call.top_k or _MAX_TOP_K, _MAX_TOP_K),
        "top_p": call.top_p,
        "temperature": call.temperature,
    }
