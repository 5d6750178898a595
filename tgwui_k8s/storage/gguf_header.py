"""The few facts of a GGUF file's header that a list of models shows. Reads no tensors.

Keys come before the (large) vocabulary in practice, and reading stops when all that is wanted has
been seen.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tgwui_k8s.storage.gguf_metadata import read_metadata

_FILE_TYPES: dict[int, str] = {
    0: "F32",
    1: "F16",
    2: "Q4_0",
    3: "Q4_1",
    7: "Q8_0",
    8: "Q5_0",
    9: "Q5_1",
    10: "Q2_K",
    11: "Q3_K_S",
    12: "Q3_K_M",
    13: "Q3_K_L",
    14: "Q4_K_S",
    15: "Q4_K_M",
    16: "Q5_K_S",
    17: "Q5_K_M",
    18: "Q6_K",
    19: "IQ2_XXS",
    20: "IQ2_XS",
    21: "Q2_K_S",
    22: "IQ3_XS",
    23: "IQ3_XXS",
    24: "IQ1_S",
    25: "IQ4_NL",
    26: "IQ3_S",
    27: "IQ3_M",
    28: "IQ2_S",
    29: "IQ2_M",
    30: "IQ4_XS",
    31: "IQ1_M",
    32: "BF16",
    36: "TQ1_0",
    37: "TQ2_0",
    38: "MXFP4_MOE",
    39: "NVFP4",
    40: "Q1_0",
    41: "Q2_0",
}


@dataclass(frozen=True)
class GGUFHeader:
    """What the header says; None where it says nothing."""

    architecture: str | None
    context_length: int | None
    file_type: str | None
    """The mix of quantizations by llama.cpp's name, such as Q4_K_M."""


def read_gguf_header(path: Path) -> GGUFHeader:
    """Read the header. Raises `BrokenModelError` for a truncated or foreign file."""
    found: dict[str, Any] = {}
    for key, value in read_metadata(path, with_vocabulary=False):
        found[key] = value
        if _is_complete(found):
            break
    architecture = found.get("general.architecture")
    context_length = found.get(f"{architecture}.context_length")
    return GGUFHeader(
        architecture=architecture if isinstance(architecture, str) else None,
        context_length=context_length if isinstance(context_length, int) else None,
        file_type=file_type_name(found.get("general.file_type")),
    )


def file_type_name(file_type: Any) -> str | None:
    """llama.cpp's name for `general.file_type`; None for what is no known number."""
    return _FILE_TYPES.get(file_type) if isinstance(file_type, int) else None


def _is_complete(found: dict[str, Any]) -> bool:
    context_key = f"{found.get('general.architecture')}.context_length"
    return context_key in found and "general.file_type" in found
