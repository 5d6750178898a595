"""Transformers' models with quantized linear layers in place of their own.

The layers are swapped when the model is constructed, without memory behind them; their weights are
read, one layer at a time, after Transformers has filled all the rest.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedConfig, PreTrainedModel

from tgwui_k8s.errors import BrokenModelError, UnsupportedModelError
from tgwui_k8s.runtime.checkpoint_reader import LazyTensor
from tgwui_k8s.runtime.quantized.linear import MakeProduct, QuantizedLinear
from tgwui_k8s.runtime.quantized.schemes import QuantizationScheme


@dataclass(frozen=True)
class Quantization:
    """What a checkpoint holds, and how its layers are to compute."""

    scheme: QuantizationScheme
    make_product: MakeProduct

    def split(self, tensors: Mapping[str, LazyTensor]) -> tuple[set[str], dict[str, LazyTensor]]:
        """The quantized layers, and the tensors that are none of theirs."""
        layers = self.scheme.layers(tensors)
        packed = {name for layer in layers for name in self.scheme.tensors_of(layer)}
        return layers, {name: tensor for name, tensor in tensors.items() if name not in packed}

    def fill(
        self,
        model: PreTrainedModel,
        layers: set[str],
        tensors: Mapping[str, LazyTensor],
        device: torch.device,
    ) -> None:
        """Read the weights of the model's quantized layers.

        Raises `BrokenModelError` for one that does not have its layer's shape.
        """
        for name in sorted(layers):
            layer = model.get_submodule(name)
            weight = self.scheme.read(name, tensors)
            found = [weight.num_inputs, weight.num_outputs]
            if not isinstance(layer, QuantizedLinear) or found != [
                layer.in_features,
                layer.out_features,
            ]:
                raise BrokenModelError(
                    f"the quantized weight of '{name}' has {found[0]} inputs and {found[1]} "
                    "outputs, which does not fit config.json; copy the whole model folder again"
                )
            layer.set_weight(weight.to(device), self.make_product)


def linear_layers(
    model_class: type[PreTrainedModel], config: PreTrainedConfig
) -> dict[str, nn.Linear]:
    """The linear layers of such a model by name, without memory behind them."""
    with torch.device("meta"):
        model = model_class(config)
    return {name: layer for name, layer in model.named_modules() if isinstance(layer, nn.Linear)}


def with_quantized_layers(
    model_class: type[PreTrainedModel], config: PreTrainedConfig, layers: set[str]
) -> type[PreTrainedModel]:
    """The class, its models constructed with `QuantizedLinear` as the named layers.

    Raises `UnsupportedModelError` where the class has no such linear layers.
    """
    if strangers := sorted(layers - linear_layers(model_class, config).keys()):
        raise UnsupportedModelError(
            f"'{strangers[0]}' is quantized, but {model_class.__name__} has no linear layer of "
            "that name (its experts are fused, say); the nearest is the vLLM loader"
        )

    def construct(model: PreTrainedModel, *arguments: Any, **options: Any) -> None:
        model_class.__init__(model, *arguments, **options)
        for name in layers:
            parent, _, attribute = name.rpartition(".")
            old: Any = model.get_submodule(name)
            new = QuantizedLinear(old.in_features, old.out_features, bias=old.bias is not None)
            setattr(model.get_submodule(parent), attribute, new)

    # Transformers goes by the class's name in places: it stays.
    body = {"__init__": construct, "__module__": model_class.__module__}
    return type(model_class.__name__, (model_class,), body)


def quantized_layers(model: nn.Module) -> list[QuantizedLinear]:
    """All of them, to be counted and measured."""
    return [module for module in model.modules() if isinstance(module, QuantizedLinear)]
