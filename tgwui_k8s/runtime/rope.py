"""Rotary position embeddings as tables, by the checkpoint's own configuration. NumPy only.

The rules are those of the models' publications as Transformers implements them
(`modeling_rope_utils`): default (Su et al. 2021), linear, llama3, yarn (Peng et al. 2023).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from tgwui_k8s.errors import UnsupportedModelError

Floats = npt.NDArray[np.float32]


def rope_parameters(config: Mapping[str, Any]) -> dict[str, Any]:
    """The rotary parameters of a config.json, old (`rope_scaling`) or new (`rope_parameters`)."""
    parameters = dict(config.get("rope_parameters") or config.get("rope_scaling") or {})
    parameters.setdefault("rope_type", parameters.get("type", "default"))
    parameters.setdefault("rope_theta", config.get("rope_theta", 10000.0))
    return parameters


def rope_tables(
    config: Mapping[str, Any], *, head_dim: int, num_positions: int
) -> tuple[Floats, Floats]:
    """Cosines and sines, float32 [num_positions, head_dim / 2] each.

    Raises `UnsupportedModelError` for a kind of scaling that depends on the prompt's length.
    """
    parameters = rope_parameters(config)
    kind = parameters["rope_type"]
    if kind not in SCALINGS or float(parameters.get("partial_rotary_factor", 1.0)) != 1.0:
        raise UnsupportedModelError(f"rotary embeddings of type '{kind}' have no fixed table")
    exponents = np.arange(0, head_dim, 2, dtype=np.float32) / np.float32(head_dim)
    frequencies = (1.0 / np.float32(parameters["rope_theta"]) ** exponents).astype(np.float32)
    frequencies, factor = SCALINGS[kind](frequencies, parameters, config)
    positions = np.arange(num_positions, dtype=np.float32)
    angles = np.outer(positions, frequencies).astype(np.float32)
    factor = np.float32(factor)
    return (
        np.ascontiguousarray(np.cos(angles) * factor, np.float32),
        np.ascontiguousarray(np.sin(angles) * factor, np.float32),
    )


def _default(
    frequencies: Floats, parameters: Mapping[str, Any], config: Mapping[str, Any]
) -> tuple[Floats, float]:
    return frequencies, 1.0


def _linear(
    frequencies: Floats, parameters: Mapping[str, Any], config: Mapping[str, Any]
) -> tuple[Floats, float]:
    return frequencies / np.float32(parameters["factor"]), 1.0


def _llama3(
    frequencies: Floats, parameters: Mapping[str, Any], config: Mapping[str, Any]
) -> tuple[Floats, float]:
    """Long wavelengths are stretched, short ones kept, those between interpolated."""
    low, high = parameters["low_freq_factor"], parameters["high_freq_factor"]
    trained = parameters["original_max_position_embeddings"]
    turns = trained * frequencies / np.float32(2 * math.pi)
    smooth = np.clip((turns - low) / (high - low), 0.0, 1.0)
    stretched = frequencies / np.float32(parameters["factor"])
    return ((1 - smooth) * stretched + smooth * frequencies).astype(np.float32), 1.0


def _yarn(
    frequencies: Floats, parameters: Mapping[str, Any], config: Mapping[str, Any]
) -> tuple[Floats, float]:
    factor = parameters["factor"]
    trained = parameters.get("original_max_position_embeddings") or (
        config["max_position_embeddings"] / factor
    )
    size = 2 * len(frequencies)
    base = parameters["rope_theta"]

    def dimension_of(num_turns: float) -> float:
        return size * math.log(trained / (num_turns * 2 * math.pi)) / (2 * math.log(base))

    low = dimension_of(parameters.get("beta_fast") or 32)
    high = dimension_of(parameters.get("beta_slow") or 1)
    if parameters.get("truncate", True):
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, size - 1)
    ramp = (np.arange(size // 2, dtype=np.float32) - low) / max(high - low, 0.001)
    kept = 1 - np.clip(ramp, 0.0, 1.0)
    scaled = frequencies / np.float32(factor) * (1 - kept) + frequencies * kept
    return scaled.astype(np.float32), _yarn_attention_factor(parameters, factor)


def _yarn_attention_factor(parameters: Mapping[str, Any], factor: float) -> float:
    if parameters.get("attention_factor") is not None:
        return float(parameters["attention_factor"])

    def scale(times: float) -> float:
        return 0.1 * times * math.log(factor) + 1.0 if factor > 1 else 1.0

    mscale, mscale_all_dim = parameters.get("mscale"), parameters.get("mscale_all_dim")
    if mscale and mscale_all_dim:
        return scale(mscale) / scale(mscale_all_dim)
    return scale(1.0)


SCALINGS = {"default": _default, "linear": _linear, "llama3": _llama3, "yarn": _yarn}
"""Kinds whose frequencies are the same for every prompt."""
