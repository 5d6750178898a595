"""Build one of Transformers' models from a folder: weights read once, held once, never written.

Which checkpoint tensor becomes which parameter is Transformers' business; we give it tensors that
are read when it asks for them, and so know how far it is.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedConfig, PreTrainedModel
from transformers.distributed import DistributedConfig
from transformers.utils import logging

from tgwui_k8s.errors import BrokenModelError
from tgwui_k8s.runtime.checkpoint_reader import HOST, open_checkpoint
from tgwui_k8s.runtime.quantized.model import Quantization, with_quantized_layers
from tgwui_k8s.runtime.tensor_parallel.weights import sliceable
from tgwui_k8s.runtime.transformers_attention import ATTENTION_NAME, register_attention
from tgwui_k8s.storage.weights import WeightFiles


@dataclass(frozen=True)
class Placement:
    """Where a model lies: whole on a device, or in shares on the devices of ranks that have met."""

    device: torch.device
    num_ranks: int = 1

    @property
    def arguments(self) -> dict[str, Any]:
        """For Transformers, whose own plan says who gets which share."""
        if self.num_ranks > 1:
            return {"distributed_config": DistributedConfig(tp_size=self.num_ranks)}
        return {} if self.device.type == "cpu" else {"device_map": {"": self.device}}


def build_model(
    model_class: type[PreTrainedModel],
    config: PreTrainedConfig,
    weights: WeightFiles,
    *,
    dtype: torch.dtype,
    placement: Placement,
    on_bytes: Callable[[int], None],
    quantization: Quantization | None = None,
) -> PreTrainedModel:
    """The model in its place, for inference. `on_bytes` gets the number of bytes read so far.

    Raises `BrokenModelError` when the weights do not fit the configuration.
    """
    register_attention()
    _quieten()
    folder = weights.files[0].parent
    # Quantized weights are unpacked on the host.
    target = HOST if quantization else placement.device
    with open_checkpoint(weights, on_bytes, target) as all_tensors:
        layers, tensors = quantization.split(all_tensors) if quantization else (set(), all_tensors)
        if layers:
            model_class = with_quantized_layers(model_class, config, layers)
        try:
            model, report = model_class.from_pretrained(
                None,
                config=config,
                state_dict=sliceable(tensors, weights) if placement.num_ranks > 1 else tensors,
                dtype=dtype,
                **placement.arguments,
                attn_implementation=ATTENTION_NAME,
                output_loading_info=True,
                local_files_only=True,
            )
        except (RuntimeError, ValueError, KeyError, TypeError) as error:
            raise BrokenModelError(_contradiction(folder, str(error))) from error
        if quantization:
            quantization.fill(model, layers, all_tensors, placement.device)
    if missing := sorted(report["missing_keys"]):
        raise BrokenModelError(
            _contradiction(folder, f"{len(missing)} are missing, the first is '{missing[0]}'")
        )
    return model.requires_grad_(False).eval()


def freeze_rope(model: PreTrainedModel, max_model_len: int) -> bool:
    """Fix RoPE frequencies that would follow the longest sequence of a batch.

    True where `max_model_len` makes them others than they are up to the trained length.

    Dynamic and LongRoPE recompute them from the largest position they see: one long request would
    change all others, and keys in the cache would not fit new queries. They are fixed here for
    `max_model_len`; up to the trained length that is what Transformers computes too.
    """
    changed = False
    for module in model.modules():
        kinds = getattr(module, "rope_type", None)
        if isinstance(kinds, str) and _is_dynamic(kinds):
            changed |= _changes_rope(module, max_model_len)
            module.rope_type = "default"
        elif isinstance(kinds, dict):
            for layer_type, kind in kinds.items():
                if _is_dynamic(kind):
                    changed |= _changes_rope(module, max_model_len, layer_type=layer_type)
                    kinds[layer_type] = "default"
    return changed


def _is_dynamic(kind: str) -> bool:
    return "dynamic" in kind or kind == "longrope"


def _changes_rope(module: torch.nn.Module, max_model_len: int, **kwargs: Any) -> bool:
    """Let the module see the last position; True if that changes its frequencies."""
    before = {name: buffer.clone() for name, buffer in module.named_buffers()}
    device = next(module.buffers()).device
    positions = torch.tensor([[max_model_len - 1]], device=device)
    module(torch.zeros(1, device=device), positions, **kwargs)
    after = dict(module.named_buffers())
    return any(not torch.equal(buffer, after[name]) for name, buffer in before.items())


def _quieten() -> None:
    """Messages go through Python's logging, and nothing is drawn on a terminal."""
    logging.disable_progress_bar()
    logging.disable_default_handler()
    logging.enable_propagation()


def _contradiction(folder: Path, reason: str) -> str:
    first_line = reason.strip().splitlines()[0][:300] if reason.strip() else "unknown reason"
    return (
        f"the weights in {folder} do not fit its config.json: {first_line}; "
        "copy the whole model folder again"
    )
