"""A LoRA adapter's folder as PEFT writes it, checked before anything heavy is imported. No torch.

    adapter_config.json          rank, alpha, and what else must be as we compute it
    adapter_model.safetensors    per layer `lora_A` [rank, inputs] and `lora_B` [outputs, rank]

What changes the result and is not computed here is refused by name. Format:
https://huggingface.co/docs/peft/developer_guides/checkpoint
"""

from __future__ import annotations

import math
import re
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tgwui_k8s.errors import BrokenModelError, ModelNotFoundError, UnsupportedModelError
from tgwui_k8s.storage.model_files import read_json
from tgwui_k8s.storage.safetensors_file import read_header
from tgwui_k8s.storage.weights import WeightFiles

CONFIG_FILE = "adapter_config.json"
WEIGHTS_FILE = "adapter_model.safetensors"

_PREFIX = "base_model.model."
_PART = re.compile(r"(?P<layer>.+)\.lora_(?P<part>[AB])\.(default\.)?weight")
_NEUTRAL = {
    "use_dora": (False,),
    "bias": ("none",),
    "lora_bias": (False,),
    "modules_to_save": ([],),
    "trainable_token_indices": ([], {}),
    "layer_replication": ([],),
    "alora_invocation_tokens": ([],),
    "use_qalora": (False,),
    "megatron_config": ({},),
}
"""Settings of PEFT's that mean more than two matrices a layer, and their harmless values."""


@dataclass(frozen=True)
class AdapterFiles:
    """An adapter that can be loaded: per layer of the model the names of its two tensors."""

    folder: Path
    config: Mapping[str, Any]
    weights: WeightFiles
    layers: Mapping[str, tuple[str, str]]
    """Layer's name to the names of its `lora_A` and `lora_B`."""

    @classmethod
    def read(cls, folder: Path) -> AdapterFiles:
        """Check the folder; raises a `StartupError` that says what is wrong with it."""
        if not folder.is_dir():
            raise ModelNotFoundError(f"there is no adapter {folder}: it is no folder")
        if not (folder / CONFIG_FILE).is_file():
            raise BrokenModelError(
                f"{folder} is no LoRA adapter in PEFT's format: it has no {CONFIG_FILE}"
            )
        config = read_json(folder / CONFIG_FILE)
        _check_config(folder, config)
        weights = _find_weights(folder)
        return cls(folder, config, weights, _layers(folder, weights))

    def scaling(self, layer: str, rank: int) -> float:
        """What the product of the layer's matrices is multiplied by."""
        patterns = self.config.get("alpha_pattern") or {}
        alpha = next(
            (
                value
                for pattern, value in patterns.items()
                if re.fullmatch(_end_of_name(pattern), layer)
            ),
            self.config["lora_alpha"],
        )
        return float(alpha) / (math.sqrt(rank) if self.config.get("use_rslora") else rank)


def _check_config(folder: Path, config: Mapping[str, Any]) -> None:
    kind = str(config.get("peft_type", "")).upper()
    if kind != "LORA":
        raise UnsupportedModelError(
            f"{folder} is an adapter of type {kind[:50] or 'unknown'}; this server runs LORA"
        )
    for name, neutral in _NEUTRAL.items():
        value = config.get(name)
        if value is not None and value not in neutral:
            raise UnsupportedModelError(
                f"{folder}: its {name} is {str(value)[:100]}, which this server does not compute; "
                "merge the adapter into the model's weights instead"
            )
    if not _is_number(config.get("lora_alpha")):
        raise BrokenModelError(f"{folder / CONFIG_FILE} has no lora_alpha")
    patterns = config.get("alpha_pattern") or {}
    if not (isinstance(patterns, dict) and all(map(_is_number, patterns.values()))):
        raise BrokenModelError(f"{folder}: its alpha_pattern does not give each pattern a number")
    for pattern in patterns:
        try:
            re.compile(_end_of_name(pattern))
        except (re.error, OverflowError, RecursionError) as error:
            raise BrokenModelError(
                f"{folder}: its alpha_pattern '{pattern[:100]}' is no regular expression: {error}"
            ) from None


def _is_number(value: Any) -> bool:
    """True for what a float can hold; JSON's true and NaN are none."""
    is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
    return is_number and abs(value) <= sys.float_info.max


def _end_of_name(pattern: str) -> str:
    """What PEFT matches with a layer's name."""
    return rf"(.*\.)?({pattern})"


def _find_weights(folder: Path) -> WeightFiles:
    path = folder / WEIGHTS_FILE
    if not path.exists():
        old = folder / "adapter_model.bin"
        advice = f"convert {old.name} to safetensors" if old.exists() else "copy the whole folder"
        raise BrokenModelError(f"{folder} has no {WEIGHTS_FILE}; {advice}")
    return WeightFiles("safetensors", (path,), read_header(path), path.stat().st_size)


def _layers(folder: Path, weights: WeightFiles) -> dict[str, tuple[str, str]]:
    parts: dict[str, dict[str, str]] = {}
    for name in weights.tensors:
        found = _PART.fullmatch(name)
        if found is None or not name.startswith(_PREFIX):
            raise UnsupportedModelError(
                f"{folder}: tensor '{name}' is no part of a linear layer's LoRA, which is all that "
                "this server computes; merge the adapter into the model's weights instead"
            )
        layer = found["layer"].removeprefix(_PREFIX)
        parts.setdefault(layer, {})[found["part"]] = name
    for layer, names in parts.items():
        if len(names) != 2:
            raise BrokenModelError(
                f"{folder}: layer '{layer}' has only one of lora_A and lora_B; copy the adapter "
                "again"
            )
        _check_shapes(folder, layer, weights, names)
    if not parts:
        raise BrokenModelError(f"{folder} holds no LoRA weights; copy the adapter again")
    return {layer: (names["A"], names["B"]) for layer, names in parts.items()}


def _check_shapes(folder: Path, layer: str, weights: WeightFiles, names: Mapping[str, str]) -> None:
    first, second = (weights.tensors[names[part]].shape for part in "AB")
    if len(first) != 2 or len(second) != 2 or first[0] != second[1] or not first[0]:
        raise BrokenModelError(
            f"{folder}: lora_A {list(first)} and lora_B {list(second)} of layer '{layer}' do not "
            "fit together; copy the adapter again"
        )
