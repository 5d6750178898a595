"""A `ModelRunner` over any of Transformers' decoder-only models: one forward per step.

All tokens of the step stand in one row, [1, num_tokens], prefills and decodes side by side; the
attention knows which sequence each belongs to. Only the rows somebody wants go through the head.
"""

from __future__ import annotations

import gc
import inspect
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import torch
from transformers import PreTrainedConfig, PreTrainedModel

from tgwui_k8s.contract import Batch, KVLayout, ModelInfo, Sampler, ScheduledSequence
from tgwui_k8s.errors import UnsupportedModelError
from tgwui_k8s.runtime.adapters import AdapterLayers
from tgwui_k8s.runtime.cuda.step_numbers import MOST_SHORT_TOKENS
from tgwui_k8s.runtime.kv_layout import LayerShape
from tgwui_k8s.runtime.kv_tensors import KVTensors
from tgwui_k8s.runtime.model_step import ModelStep
from tgwui_k8s.runtime.paged_backend import choose_backend
from tgwui_k8s.runtime.transformers_attention import LayerProbe


class _Forward:
    """The model's forward over tokens in one row."""

    def __init__(self, model: PreTrainedModel) -> None:
        self._model = model
        parameters = inspect.signature(type(model).forward).parameters
        self._keeps_logits = "logits_to_keep" in parameters

    def __call__(self, step: ModelStep) -> torch.Tensor:
        """Logits [len(step.logit_rows), vocab_size] in the model's type."""
        rows = step.logit_rows.long()
        head = {"logits_to_keep": rows} if self._keeps_logits else {}
        output = self._model(
            input_ids=step.token_ids.long().unsqueeze(0),
            position_ids=step.positions.long().unsqueeze(0),
            use_cache=False,
            paged_attention=step.attention,
            **head,
        )
        return output.logits[0] if self._keeps_logits else output.logits[0, rows]


class TransformersRunner:
    """Steps one model. See `contract.ModelRunner`."""

    def __init__(
        self,
        model: PreTrainedModel,
        kv: KVTensors,
        layout: KVLayout,
        info: ModelInfo,
        sampler: Sampler | None = None,
        graph_sizes: Sequence[int] = (),
    ) -> None:
        """`graph_sizes` are the numbers of decodes to record steps for, where that can be done."""
        self._forward = _Forward(model)
        self._adapters = AdapterLayers(
            model,
            device=kv.device,
            dtype=kv.dtype,
            probe=lambda num_tokens: _probe(model, kv.device, num_tokens),
        )
        self.layout = layout
        self.info = info
        self.sampler = sampler
        self._device = kv.device
        self._backend, self._graphs = choose_backend(kv, layout, self._forward)
        self._graph_sizes = graph_sizes

    @property
    def runs_ahead(self) -> bool:
        """See `async_contract.AsyncRunner`."""
        return self._device.type != "cpu"

    def execute(self, batch: Batch) -> torch.Tensor:
        """Logits, float32 [batch.num_logits, vocab_size], on the model's device."""
        return self.launch(batch, None)

    @torch.inference_mode()
    def launch(self, batch: Batch, previous: torch.Tensor | None) -> torch.Tensor:
        """The same, without waiting for the device; see `async_contract.AsyncRunner`."""
        if self._graphs and (logits := self._graphs.run(batch, previous)) is not None:
            return logits
        self._adapters.begin_step(batch)
        step = self._backend.begin_step(batch)
        if previous is not None:
            step.fill_in(previous)
        return self._forward(step).float()

    @torch.inference_mode()
    def warm_up(self) -> None:
        """A prompt and a decode, in blocks that nobody has yet; then the recordings.

        Where kernels are compiled when they are first used, the prompt is long enough for all.
        """
        block_size = self.layout.block_size
        room = min(group.num_blocks for group in self.layout.groups) * block_size
        length = MOST_SHORT_TOKENS + 1 if self._graphs else 2
        length = min(length, self.info.max_model_len, room)
        tables = tuple(list(range(length // block_size + 1)) for _ in self.layout.groups)
        self.execute(Batch([ScheduledSequence(0, 0, [0] * length, tables, 1)], length))
        if length < min(self.info.max_model_len, room):
            self.execute(Batch([ScheduledSequence(0, length, [0], tables, 1)], 1))
        if self._graphs and self._graph_sizes:
            self._adapters.begin_step(Batch([], 0))
            self._graphs.record(self._graph_sizes, self.info.max_model_len)

    def load_adapter(self, key: str, folder: Path) -> None:
        """See `engine.adapters.AdapterRunner`."""
        self._adapters.load(key, folder)

    def unload_adapter(self, key: str) -> None:
        """See `engine.adapters.AdapterRunner`."""
        self._adapters.unload(key)

    def close(self) -> None:
        """Drop model and cache."""
        del self._forward, self._backend, self._graphs, self._adapters
        gc.collect()
        if self._device.type == "cuda":
            torch.cuda.empty_cache()


@torch.inference_mode()
def _probe(model: PreTrainedModel, device: torch.device, num_tokens: int) -> LayerProbe:
    """What the layers ask of attention, after a forward of some tokens without it."""
    probe = LayerProbe(type(model).__name__)
    scheduled = ScheduledSequence(0, 0, [0] * num_tokens, (), num_logits=1)
    _Forward(model)(ModelStep.of(Batch([scheduled], num_tokens), probe, device))
    return probe


def probe_layers(
    model: PreTrainedModel, device: torch.device, max_model_len: int
) -> dict[int, LayerShape]:
    """What every attention layer keeps per token, by a forward of one token.

    A window that no sequence outgrows counts as none. Raises `UnsupportedModelError` when the
    model's attention needs more than ours does.
    """
    name = type(model).__name__
    try:
        probe = _probe(model, device, 1)
    except (TypeError, AttributeError) as error:
        raise UnsupportedModelError(
            f"{name} does not hand down to its attention layers what this loader needs; use the "
            "vLLM loader or a GGUF with llama.cpp"
        ) from error
    layers = {
        index: replace(layer, window=_effective(layer.window, max_model_len))
        for index, layer in probe.layers.items()
    }
    _check_layers(model.config.get_text_config(), name, layers, max_model_len)
    return layers


def _effective(window: int | None, max_model_len: int) -> int | None:
    return None if window is None or window >= max_model_len else window


def _check_layers(
    config: PreTrainedConfig, name: str, layers: Mapping[int, LayerShape], max_model_len: int
) -> None:
    """Compare what the layers asked for with what the configuration says."""
    if len(layers) != config.num_hidden_layers:
        raise UnsupportedModelError(
            f"only {len(layers)} of the {config.num_hidden_layers} layers of {name} use attention "
            "with a KV cache; use the vLLM loader or a GGUF with llama.cpp"
        )
    is_used = getattr(config, "use_sliding_window", True)
    window = getattr(config, "sliding_window", None) if is_used else None
    kinds = getattr(config, "layer_types", None) or ["sliding_attention"] * len(layers)
    for index, layer in layers.items():
        expected = (
            _effective(window, max_model_len) if kinds[index] == "sliding_attention" else None
        )
        if layer.window != expected:
            raise UnsupportedModelError(
                f"{name} does not tell its attention layers how far each looks back; use the vLLM "
                "loader or a GGUF with llama.cpp"
            )
