"""The few facts of a GGUF file's header that a list of models shows. Reads no tensors.

The format: magic, version, two counts, then key-value pairs, all little-endian. Keys come before
the (large) vocabulary in practice, and reading stops when all that is wanted has been seen.
Source: ggml's docs/gguf.md.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from tgwui_k8s.errors import BrokenModelError

_MAGIC = b"GGUF"
_SCALARS = {
    0: "B",
    1: "b",
    2: "H",
    3: "h",
    4: "I",
    5: "i",
    6: "f",
    7: "?",
    10: "Q",
    11: "q",
    12: "d",
}
_STRING, _ARRAY = 8, 9
_LONGEST_TEXT = 64 * 1024 * 1024
_MOST_PAIRS = 100_000

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
    try:
        with path.open("rb") as file:
            return _read(file, path)
    except OSError as error:
        raise BrokenModelError(f"cannot read {path}: {error.strerror}") from None
    except (struct.error, KeyError, ValueError, OverflowError):
        raise BrokenModelError(f"{path} is damaged or truncated: bad GGUF header") from None


def _read(file: BinaryIO, path: Path) -> GGUFHeader:
    if file.read(4) != _MAGIC:
        raise BrokenModelError(f"{path} is no GGUF file: it does not begin with 'GGUF'")
    version, _, num_pairs = _unpack(file, "IQQ")
    if version not in (2, 3) or num_pairs > _MOST_PAIRS:
        raise BrokenModelError(f"{path} has GGUF version {version}: only 2 and 3 are known")
    found: dict[str, Any] = {}
    for _ in range(num_pairs):
        key = _read_text(file)
        (kind,) = _unpack(file, "I")
        found[key] = _read_value(file, kind)
        if _is_complete(found):
            break
    architecture = found.get("general.architecture")
    context_length = found.get(f"{architecture}.context_length")
    file_type = found.get("general.file_type")
    return GGUFHeader(
        architecture=architecture if isinstance(architecture, str) else None,
        context_length=context_length if isinstance(context_length, int) else None,
        file_type=_FILE_TYPES.get(file_type) if isinstance(file_type, int) else None,
    )


def _is_complete(found: dict[str, Any]) -> bool:
    context_key = f"{found.get('general.architecture')}.context_length"
    return context_key in found and "general.file_type" in found


def _read_value(file: BinaryIO, kind: int) -> Any:
    """A scalar or text; an array is skipped and gives None."""
    if kind == _STRING:
        return _read_text(file)
    if kind != _ARRAY:
        return _unpack(file, _SCALARS[kind])[0]
    element, count = _unpack(file, "IQ")
    if element == _STRING:
        for _ in range(count):
            _skip(file, _unpack(file, "Q")[0])
    else:
        _skip(file, count * struct.calcsize("<" + _SCALARS[element]))
    return None


def _read_text(file: BinaryIO) -> str:
    (length,) = _unpack(file, "Q")
    if length > _LONGEST_TEXT:
        raise ValueError("text too long")
    (text,) = _unpack(file, f"{length}s")
    decoded: str = text.decode("utf-8", errors="replace")
    return decoded


def _skip(file: BinaryIO, length: int) -> None:
    file.seek(length, 1)


def _unpack(file: BinaryIO, layout: str) -> tuple[Any, ...]:
    """Raises `struct.error` at the end of the file."""
    packed = struct.Struct("<" + layout)
    return packed.unpack(file.read(packed.size))
