"""LoRA adapters on a model's linear layers, chosen per sequence: base and adapters in one batch.

A layer's output for the tokens of a sequence with an adapter is  y + B(A(x)) * scaling  as in
PEFT. The base layer, plain or quantized, computes all tokens at once and knows nothing of it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.utils.hooks import RemovableHandle

from tgwui_k8s.contract import Batch
from tgwui_k8s.errors import NotEnoughMemoryError, UnsupportedModelError
from tgwui_k8s.runtime.checkpoint_reader import open_checkpoint
from tgwui_k8s.runtime.transfers import to_device
from tgwui_k8s.storage.adapter_files import AdapterFiles

_PROBE_TOKENS = 5


@dataclass(frozen=True, slots=True)
class _Factors:
    """One layer's adapter: `down` [rank, inputs], `up` [outputs, rank] times the scaling."""

    down: torch.Tensor
    up: torch.Tensor

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        return nn.functional.linear(nn.functional.linear(x, self.down), self.up)


class _Layer:
    """What the adapters add to one linear layer, while any of them does."""

    def __init__(self, module: nn.Module, step: _Step) -> None:
        self.adapters: dict[str, _Factors] = {}
        self._step = step
        self.hook: RemovableHandle = module.register_forward_hook(self._add)

    def _add(self, module: nn.Module, inputs: tuple[Any, ...], output: torch.Tensor) -> None:
        """A forward hook that changes the output in place."""
        for key, rows in self._step.rows:
            if factors := self.adapters.get(key):
                x, y = inputs[0].flatten(0, -2), output.flatten(0, -2)
                y[rows] += factors(x[rows])


class _Step:
    """Which rows of the step belong to which adapter; empty where none does."""

    def __init__(self) -> None:
        self.rows: list[tuple[str, torch.Tensor]] = []


class AdapterLayers:
    """The adapters of one model. Loading and unloading happen between steps."""

    def __init__(
        self,
        model: nn.Module,
        *,
        device: torch.device,
        dtype: torch.dtype,
        probe: Callable[[int], object],
    ) -> None:
        """`probe(n)` runs the model over n tokens, changing nothing."""
        self._model = model
        self._device = device
        self._dtype = dtype
        self._probe = probe
        self._step = _Step()
        self._layers: dict[str, _Layer] = {}

    def load(self, key: str, folder: Path) -> None:
        """Read an adapter, to be chosen as `key`; a `StartupError` leaves all as it was."""
        try:
            self._load(key, AdapterFiles.read(folder))
        except (MemoryError, torch.OutOfMemoryError) as error:
            raise NotEnoughMemoryError(
                f"the adapter {folder.name} does not fit the memory that weights and KV cache "
                "leave; lower --kv-cache-memory, or unload another adapter"
            ) from error

    def _load(self, key: str, files: AdapterFiles) -> None:
        modules = {name: self._find(files, name) for name in files.layers}
        self._check_rows(files, modules)
        factors: dict[str, _Factors] = {}
        with open_checkpoint(files.weights, lambda _: None) as tensors:
            for name, (down, up) in files.layers.items():
                first, second = tensors[down][...].float(), tensors[up][...].float()
                scaled = second * files.scaling(name, first.shape[0])
                factors[name] = _Factors(self._place(first), self._place(scaled))
        for name, module in modules.items():
            if name not in self._layers:
                self._layers[name] = _Layer(module, self._step)
            self._layers[name].adapters[key] = factors[name]

    def unload(self, key: str) -> None:
        """Forget an adapter that no sequence uses any more."""
        for name, layer in list(self._layers.items()):
            layer.adapters.pop(key, None)
            if not layer.adapters:
                layer.hook.remove()
                del self._layers[name]

    def begin_step(self, batch: Batch) -> None:
        """Note whose tokens stand where."""
        rows: dict[str, list[int]] = {}
        first = 0
        for scheduled in batch.sequences:
            end = first + len(scheduled.token_ids)
            if scheduled.adapter:
                rows.setdefault(scheduled.adapter, []).extend(range(first, end))
            first = end
        self._step.rows = [
            (key, to_device(numbers, torch.int64, self._device)) for key, numbers in rows.items()
        ]

    def _place(self, tensor: torch.Tensor) -> torch.Tensor:
        return tensor.to(device=self._device, dtype=self._dtype)

    def _find(self, files: AdapterFiles, name: str) -> nn.Module:
        """The linear layer of the model that the adapter speaks of, of its size."""
        try:
            module: Any = self._model.get_submodule(name)
        except AttributeError:
            raise UnsupportedModelError(
                f"{files.folder}: the model has no layer '{name}'; the adapter is for another model"
            ) from None
        down, up = (files.weights.tensors[tensor].shape for tensor in files.layers[name])
        sizes = _linear_sizes(module)
        if sizes is None:
            raise UnsupportedModelError(
                f"{files.folder}: '{name}' is no linear layer of the model; merge the adapter into "
                "the model's weights instead"
            )
        if (down[1], up[0]) != sizes:
            raise UnsupportedModelError(
                f"{files.folder}: '{name}' has {sizes[0]} inputs and {sizes[1]} outputs, the "
                f"adapter's has {down[1]} and {up[0]}; the adapter is for another model"
            )
        return module

    def _check_rows(self, files: AdapterFiles, modules: Mapping[str, nn.Module]) -> None:
        """Refuse layers that see other rows than the step's tokens, one each: experts, the head."""
        self._step.rows = []  # the probe's tokens are nobody's
        with _row_counts(modules) as counts:
            self._probe(_PROBE_TOKENS)
        for name in modules:
            if counts.get(name) != [_PROBE_TOKENS]:
                raise UnsupportedModelError(
                    f"{files.folder}: layer '{name}' does not see every token once, so that the "
                    "adapter cannot be computed there; merge it into the model's weights instead"
                )


@contextmanager
def _row_counts(modules: Mapping[str, nn.Module]) -> Iterator[dict[str, list[int]]]:
    """How many rows each module was given, per call."""
    counts: dict[str, list[int]] = {}

    def count(name: str) -> Callable[[nn.Module, tuple[Any, ...]], None]:
        def note(module: nn.Module, inputs: tuple[Any, ...]) -> None:
            counts.setdefault(name, []).append(inputs[0].flatten(0, -2).shape[0])

        return note

    hooks = [module.register_forward_pre_hook(count(name)) for name, module in modules.items()]
    try:
        yield counts
    finally:
        for hook in hooks:
            hook.remove()


def _linear_sizes(module: Any) -> tuple[int, int] | None:
    """Inputs and outputs of a linear layer, ours, PyTorch's or GPT-2's; None for anything else."""
    if hasattr(module, "in_features") and hasattr(module, "out_features"):
        return module.in_features, module.out_features
    if hasattr(module, "nf") and hasattr(module, "nx"):
        return module.nx, module.nf
    return None
