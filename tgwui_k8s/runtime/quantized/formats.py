"""What AWQ and GPTQ checkpoints say of themselves, and where they keep the codes. No torch.

    AWQ   qweight int32 [inputs, outputs/8]     8 outputs in an int32, in an order of its own
          qzeros  int32 [groups, outputs/8]     the same
          scales  float [groups, outputs]
    GPTQ  qweight int32 [inputs/8, outputs]     8 inputs in an int32, or 4 of 8 bits
          qzeros  int32 [groups, outputs/8]     zero points, less one in the first version
          scales  float [groups, outputs]
          g_idx   int32 [inputs]                which group each input belongs to

Sources: AutoAWQ's `WQLinear_GEMM` and `dequantize_gemm`; AutoGPTQ's `QuantLinear`; GPTQModel's
`checkpoint_format`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tgwui_k8s.errors import UnsupportedModelError
from tgwui_k8s.storage.model_files import ModelFiles

AWQ_PLACES = (0, 4, 1, 5, 2, 6, 3, 7)
"""Where each of eight consecutive outputs stands in AWQ's int32, in units of 4 bits."""

SUPPORTED_BITS = (4, 8)

_MIN_GROUP_SIZE = 32


@dataclass(frozen=True, kw_only=True)
class PackedFormat:
    """A checkpoint's own description of its codes."""

    folder: Path
    method: str
    """`awq` or `gptq`."""
    bits: int
    group_size: int
    """Inputs that share a scale; -1 is one group for all."""
    zero_offset: int = 0
    """What the stored zero points lack."""
    has_act_order: bool = False
    """The groups were formed in another order than the inputs stand in."""

    @property
    def description(self) -> str:
        """Method and bits, such as `awq 4 bit`."""
        return f"{self.method} {self.bits} bit"


def awq_format(folder: Path, config: Mapping[str, Any]) -> PackedFormat:
    """From `quantization_config`, or from AutoAWQ's older `quant_config.json`.

    Raises `UnsupportedModelError` that names what is not supported.
    """
    _require(folder, "bits", config.get("bits", config.get("w_bit")), (4,))
    version = str(config.get("version", "gemm")).lower()
    _require(folder, "version", version, ("gemm",))
    group_size = _group_size(folder, config, "q_group_size")
    return PackedFormat(folder=folder, method="awq", bits=4, group_size=group_size)


def gptq_format(folder: Path, config: Mapping[str, Any]) -> PackedFormat:
    """From `quantization_config` or `quantize_config.json`.

    Raises `UnsupportedModelError` that names what is not supported.
    """
    bits = config.get("bits")
    _require(folder, "bits", bits, SUPPORTED_BITS)
    layout = "marlin" if config.get("is_marlin_format") else "gptq"
    layout = str(config.get("checkpoint_format") or layout).lower()
    _require(folder, "checkpoint_format", layout, ("gptq", "gptq_v2"))
    return PackedFormat(
        folder=folder,
        method="gptq",
        bits=int(bits or 0),
        group_size=_group_size(folder, config, "group_size"),
        zero_offset=0 if layout == "gptq_v2" else 1,
        has_act_order=bool(config.get("desc_act")),
    )


def packed_format(files: ModelFiles) -> PackedFormat | None:
    """The format of a model folder; None where its files say nothing of AWQ or GPTQ.

    Raises `UnsupportedModelError` that names what is not supported.
    """
    description, method = files.quantization, files.quantization_method
    if method == "awq" or (not method and "w_bit" in description):
        return awq_format(files.path, description)
    if method == "gptq" or (not method and "bits" in description):
        return gptq_format(files.path, description)
    return None


def _group_size(folder: Path, config: Mapping[str, Any], older_key: str) -> int:
    size = config.get("group_size", config.get(older_key))
    is_size = isinstance(size, int) and not isinstance(size, bool)
    if not is_size or (size != -1 and (size < _MIN_GROUP_SIZE or size % _MIN_GROUP_SIZE)):
        raise UnsupportedModelError(
            f"{folder}: the quantization's group_size is {size!r}; this loader runs multiples of "
            f"{_MIN_GROUP_SIZE}, and -1"
        )
    return int(size)


def _require(folder: Path, key: str, value: Any, supported: tuple[Any, ...]) -> None:
    if value not in supported:
        known = " or ".join(str(option) for option in supported)
        raise UnsupportedModelError(
            f"{folder}: the quantization's {key} is {value!r}; this loader runs {known}, the "
            "nearest for others is the vLLM loader"
        )
