"""Finding a checkpoint and making a model for it; nothing here touches the device."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from neuron_double.checkpoint import find_weights
from neuron_double.journal import record
from transformers import AutoConfig


class PretrainedModel(torch.nn.Module):
    """A model that is made from a folder."""

    weights_path: Path | None = None

    @classmethod
    def from_pretrained(cls, pretrained_model_path: Any, *model_args: Any, **kwargs: Any) -> Any:
        """Read the configuration and find the weights, which are read by `to_neuron()`.

        Raises AssertionError where lengths or batch sizes contradict one another, OSError for a
        missing folder, FileNotFoundError for one without weights.
        """
        _check_lengths(kwargs)
        _check_shared_caches(kwargs)
        config = AutoConfig.from_pretrained(pretrained_model_path)
        model = cls(config, *model_args, **kwargs)
        model.weights_path = find_weights(Path(pretrained_model_path))
        record(
            "construct",
            model=cls.__name__,
            path=str(pretrained_model_path),
            arguments={name: value for name, value in kwargs.items() if name != "neuron_config"},
        )
        return model


def save_pretrained_split(model: torch.nn.Module, save_directory: str) -> None:
    """Write a Transformers model's weights one by one, beside its configuration."""
    model.config.save_pretrained(save_directory)
    folder = Path(save_directory) / "pytorch_model.bin"
    folder.mkdir(parents=True, exist_ok=True)
    names = {}
    for number, (key, tensor) in enumerate(model.state_dict().items()):
        names[key] = f"p{number}.{key}"
        torch.save(tensor, folder / names[key])
    (folder / "key_to_filename.json").write_text(json.dumps(names))


def _check_lengths(kwargs: dict[str, Any]) -> None:
    estimate, n_positions = kwargs.get("context_length_estimate"), kwargs.get("n_positions", 2048)
    if estimate:
        longest, limit = _largest(estimate), _largest(n_positions)
        assert longest <= limit, (
            f"Max context_length_estimate {longest} cannot be more than max n_positions {limit}."
        )


def _check_shared_caches(kwargs: dict[str, Any]) -> None:
    neuron_config = kwargs.get("neuron_config")
    if neuron_config is not None and neuron_config.continuous_batching is not None:
        shared = neuron_config.continuous_batching.batch_size_for_shared_caches
        expected = kwargs.get("batch_size")
        assert shared == expected, (
            f"invalid batch_size_for_shared_caches ({shared}), {expected} is expected"
        )


def _largest(value: int | Sequence[int]) -> int:
    return value if isinstance(value, int) else max(value)
