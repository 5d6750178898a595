"""A model on NeuronCores with the shape that upstream's Transformers path calls.

`generate(**kwargs)` is Transformers' own loop around the compiled forward pass, so that upstream's
samplers, grammars, logit biases, streaming and stop criteria all work on it; logits come back to
the host, and so the model's `device` is the CPU. Its class stands in none of upstream's lists of
special cases, on purpose.
"""

from __future__ import annotations

import importlib
import json
import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Any

_CLASSES = {
    "llama": "llama.model:LlamaForSampling",
    "code_llama": "llama.model:LlamaForSampling",
    "mistral": "mistral.model:MistralForSampling",
    "mixtral": "mixtral.model:MixtralForSampling",
    "gpt2": "gpt2.model:GPT2ForSamplingWithContextBroadcasting",
    "opt": "opt.model:OPTForSampling",
    "bloom": "bloom.model:BloomForSampling",
}
_DEFAULT_POSITIONS = 2048
_NEUTRAL: dict[str, Any] = {"num_beams": 1, "guidance_scale": 1, "penalty_alpha": 0}
"""Parameters whose other values need more than one row, or a second cache."""
_ABSENT = ("prompt_lookup_num_tokens", "cache_implementation", "inputs_embeds")

logger = logging.getLogger("tgwui_k8s")


@dataclass(frozen=True)
class NeuronSettings:
    """What a model is compiled for; batch size 1."""

    tp_degree: int | None
    amp: str
    n_positions: int | None
    context_buckets: tuple[int, ...] = ()
    quantization: str = "none"
    gqa: str = ""
    attention_layout: str = "HSB"
    collectives_layout: str = "HSB"
    fuse_qkv: bool = False


class CannotServe(ValueError):  # noqa: N818 - says what is the case
    """This request asks for what compiled graphs cannot do."""

    is_clients_fault = True


class NeuronModel:
    """One loaded model. One generation at a time: it has one cache."""

    def __init__(self, adapter: Any, n_positions: int) -> None:
        """`adapter`: the library's HuggingFaceGenerationModelAdapter."""
        import torch

        self._adapter = adapter
        self.n_positions = n_positions
        self.config = adapter.config
        self.device = torch.device("cpu")

    def generate(self, **kwargs: Any) -> Any:
        """Transformers' `generate`; returns (1, length) token ids with the prompt in front.

        Raises `CannotServe` for beams, guidance and what else the graphs cannot do.
        """
        for name, neutral in _NEUTRAL.items():
            if kwargs.get(name, neutral) not in (neutral, None):
                raise CannotServe(f"{name} is not available on Neuron")
        for name in _ABSENT:
            if kwargs.get(name):
                raise CannotServe(f"{name} is not available on Neuron")
        inputs = kwargs["inputs"]
        room = self.n_positions - inputs.shape[1]
        if room < 1:
            raise CannotServe(
                f"the prompt has {inputs.shape[1]} tokens; {self.n_positions} are compiled for, "
                "answer included"
            )
        kwargs["max_new_tokens"] = min(kwargs.get("max_new_tokens") or room, room)
        return self._adapter.generate(**kwargs)

    def __call__(self, input_ids: Any) -> dict[str, Any]:
        """The logits after a prompt, as upstream's `/v1/internal/logits` reads them."""
        import torch

        self._adapter.reset_generation()
        cache_ids = torch.arange(input_ids.shape[1])
        with torch.no_grad():
            output = self._adapter(input_ids=input_ids, cache_ids=cache_ids, start_ids=None)
        return {"logits": output.logits}


def load(
    folder: Path, artifacts: Path, settings: NeuronSettings, *, compile_on_start: bool
) -> NeuronModel:
    """Read weights onto the cores, and the compiled graphs.

    Raises FileNotFoundError where there are no graphs and compiling was not allowed, ValueError
    where something is missing or cannot be.
    """
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    has_graphs = any(artifacts.glob("*.neff"))
    if not has_graphs and not compile_on_start:
        raise FileNotFoundError(
            f"no compiled graphs in {artifacts}: run 'tgwui-k8s neuron compile --neuron-mode "
            "sample --batch-size 1' for this model, or allow --neuron-compile-on-start, which may "
            "take hours"
        )
    if settings.tp_degree is None:
        raise ValueError("set --tp-degree: the number of NeuronCores that the model lies on")
    n_positions = settings.n_positions or min(
        config.get("max_position_embeddings") or _DEFAULT_POSITIONS, _DEFAULT_POSITIONS
    )
    model = _class(config.get("model_type")).from_pretrained(
        str(folder),
        batch_size=1,
        tp_degree=settings.tp_degree,
        amp=settings.amp,
        n_positions=n_positions if _takes_a_number(config) else [n_positions],
        context_length_estimate=list(settings.context_buckets) or [n_positions],
        neuron_config=_neuron_config(settings),
    )
    if has_graphs:
        model.load(str(artifacts))
    else:
        logger.warning("compiling for NeuronCores; this may take hours")
    model.to_neuron()
    return NeuronModel(_adapt(folder, model), n_positions)


def _class(model_type: str | None) -> Any:
    if model_type not in _CLASSES:
        known = ", ".join(_CLASSES)
        raise ValueError(f"transformers-neuronx runs {known}; this model's type is '{model_type}'")
    module, name = _CLASSES[model_type].split(":")
    return getattr(importlib.import_module(f"transformers_neuronx.{module}"), name)


def _takes_a_number(config: dict[str, Any]) -> bool:
    """GPT-2's and OPT's classes compute with it."""
    return config.get("model_type") in ("gpt2", "opt")


def _neuron_config(settings: NeuronSettings) -> Any:
    """As the graphs were compiled: anything else has no graph."""
    library: Any = importlib.import_module("transformers_neuronx.config")
    options: dict[str, Any] = {
        "attention_layout": settings.attention_layout,
        "collectives_layout": settings.collectives_layout,
        "fuse_qkv": settings.fuse_qkv,
    }
    if settings.gqa:
        constants: Any = importlib.import_module("transformers_neuronx.constants")
        options["group_query_attention"] = constants.GQA(settings.gqa)
    if settings.quantization == "s8":
        options["quant"] = library.QuantizationConfig(quant_dtype="s8", dequant_dtype=settings.amp)
    return library.NeuronConfig(**options)


def _adapt(folder: Path, model: Any) -> Any:
    from transformers import AutoConfig

    library: Any = importlib.import_module("transformers_neuronx.generation_utils")
    return library.HuggingFaceGenerationModelAdapter(AutoConfig.from_pretrained(folder), model)
