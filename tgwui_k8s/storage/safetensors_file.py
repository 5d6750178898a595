"""The header of a safetensors file, checked against the file it stands in.

    8 bytes: length of the header, little endian │ header: JSON │ tensor data

A file whose download was cut off is found here, before anything heavy starts, not when a page
beyond its end is touched. Format: https://huggingface.co/docs/safetensors
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tgwui_k8s.errors import BrokenModelError

ITEM_BITS = {
    **{"F64": 64, "I64": 64, "U64": 64, "C64": 64, "F32": 32, "I32": 32, "U32": 32},
    **{"F16": 16, "BF16": 16, "I16": 16, "U16": 16, "BOOL": 8, "I8": 8, "U8": 8},
    **{"F8_E4M3": 8, "F8_E5M2": 8, "F8_E4M3FNUZ": 8, "F8_E5M2FNUZ": 8, "F8_E8M0": 8},
    **{"F4": 4, "F6_E2M3": 6, "F6_E3M2": 6},
}
"""Bits per element, by the format's own names of types."""

MAX_HEADER_BYTES = 100_000_000
"""The format's own limit."""

DOWNLOAD_AGAIN = "copy or download it again"


@dataclass(frozen=True, slots=True)
class TensorEntry:
    """Where one tensor lies: `num_bytes` at `offset` of `file`, row-major, little endian."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    file: Path
    offset: int
    num_bytes: int

    @property
    def float_bytes(self) -> int | None:
        """Bytes per element of an ordinary floating-point tensor; None for anything else."""
        is_float = self.dtype in ("F64", "F32", "F16", "BF16")
        return ITEM_BITS[self.dtype] // 8 if is_float else None


def read_header(path: Path) -> dict[str, TensorEntry]:
    """The tensors of one file by name.

    Raises `BrokenModelError` when the file is missing, truncated, no safetensors file, or when
    its header does not describe the bytes that follow.
    """
    header, data_start, file_bytes = _read_json_header(path)
    entries = {
        name: _read_entry(path, name, description, data_start)
        for name, description in header.items()
        if name != "__metadata__"
    }
    data_end = max((entry.offset + entry.num_bytes for entry in entries.values()), default=0)
    if data_end > file_bytes:
        raise BrokenModelError(
            f"{path.name} is truncated: it has {file_bytes} bytes where its header promises "
            f"{data_end}; {DOWNLOAD_AGAIN} ({path})"
        )
    return entries


def _read_json_header(path: Path) -> tuple[dict[str, Any], int, int]:
    try:
        with path.open("rb") as file:
            file_bytes = file.seek(0, 2)
            file.seek(0)
            prefix = file.read(8)
            num_bytes = int.from_bytes(prefix, "little")
            if prefix == b"version ":
                raise BrokenModelError(
                    f"{path.name} is a Git LFS pointer, not the weights themselves; "
                    f"run 'git lfs pull' where it was cloned, then copy it again ({path})"
                )
            if len(prefix) < 8 or num_bytes > MAX_HEADER_BYTES:
                raise BrokenModelError(
                    f"{path.name} is no safetensors file; {DOWNLOAD_AGAIN} ({path})"
                )
            raw = file.read(num_bytes)
    except OSError as error:
        raise BrokenModelError(f"cannot read {path}: {error.strerror}") from error
    if len(raw) < num_bytes:
        raise BrokenModelError(
            f"{path.name} is truncated: it ends within its header; {DOWNLOAD_AGAIN} ({path})"
        )
    try:
        header = json.loads(raw)
    except ValueError:
        header = None
    if not isinstance(header, dict):
        raise BrokenModelError(
            f"the header of {path.name} is no valid JSON; {DOWNLOAD_AGAIN} ({path})"
        )
    return header, 8 + num_bytes, file_bytes


def _read_entry(path: Path, name: str, description: Any, data_start: int) -> TensorEntry:
    try:
        dtype = description["dtype"]
        shape = tuple(int(size) for size in description["shape"])
        begin, end = (int(offset) for offset in description["data_offsets"])
        num_bits = ITEM_BITS[dtype] * math.prod(shape)
    except (KeyError, TypeError, ValueError):
        begin, end, dtype, shape, num_bits = 0, -1, "", (), 0
    if not 0 <= begin <= end or (end - begin) * 8 != num_bits:
        raise BrokenModelError(
            f"{path.name} describes tensor '{name}' wrongly; {DOWNLOAD_AGAIN} ({path})"
        )
    return TensorEntry(name, dtype, shape, path, data_start + begin, end - begin)
