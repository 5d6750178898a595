"""Writes GGUF headers for tests: metadata, no tensors."""

from __future__ import annotations

import struct
from collections.abc import Mapping
from typing import Any

MAGIC = b"GGUF"


def gguf_bytes(metadata: Mapping[str, Any], *, version: int = 3) -> bytes:
    """A GGUF file without tensors. Values: str, bool, int (uint32), float, lists of str or int."""
    head = MAGIC + struct.pack("<IQQ", version, 0, len(metadata))
    return head + b"".join(_text(key) + _value(value) for key, value in metadata.items())


def _text(text: str) -> bytes:
    encoded = text.encode()
    return struct.pack("<Q", len(encoded)) + encoded


def _value(value: Any) -> bytes:
    if isinstance(value, bool):
        return struct.pack("<I?", 7, value)
    if isinstance(value, int):
        return struct.pack("<II", 4, value)
    if isinstance(value, float):
        return struct.pack("<If", 6, value)
    if isinstance(value, str):
        return struct.pack("<I", 8) + _text(value)
    is_text = isinstance(value[0], str)
    head = struct.pack("<IIQ", 9, 8 if is_text else 4, len(value))
    return head + b"".join(_text(item) if is_text else struct.pack("<I", item) for item in value)
