"""Key-value pairs of a GGUF file, in the order of the file. Reads no tensors.

The format: magic, version, two counts, then the pairs, all little-endian.
Source: ggml's docs/gguf.md.
"""

from __future__ import annotations

import mmap
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

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
_LENGTH = struct.Struct("<Q")
_LONGEST_TEXT = 64 * 1024 * 1024
_MOST_PAIRS = 100_000


def read_metadata(path: Path, *, with_vocabulary: bool = True) -> Iterator[tuple[str, Any]]:
    """Yield (key, value): numbers, booleans, texts, and lists of them.

    `with_vocabulary` False skips lists of texts, which are the large ones: their value is None.
    Raises `BrokenModelError` for a truncated or foreign file.
    """
    try:
        with path.open("rb") as file:
            if file.read(len(_MAGIC)) != _MAGIC:
                raise BrokenModelError(f"{path} is no GGUF file: it does not begin with 'GGUF'")
            with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
                yield from _Cursor(data, path).pairs(with_vocabulary=with_vocabulary)
    except OSError as error:
        raise BrokenModelError(f"cannot read {path}: {error.strerror}") from None
    except (struct.error, KeyError, ValueError, OverflowError):
        raise BrokenModelError(f"{path} is damaged or truncated: bad GGUF header") from None


class _Cursor:
    """A place in the file that moves on with every value read.

    Raises `struct.error` or `ValueError` at the end of the file.
    """

    def __init__(self, data: mmap.mmap, path: Path) -> None:
        self._data = data
        self._path = path
        self._position = len(_MAGIC)

    def pairs(self, *, with_vocabulary: bool) -> Iterator[tuple[str, Any]]:
        version, _, num_pairs = self._unpack("IQQ")
        if version not in (2, 3) or num_pairs > _MOST_PAIRS:
            raise BrokenModelError(
                f"{self._path} has GGUF version {version}: only 2 and 3 are known"
            )
        for _ in range(num_pairs):
            key = self._text()
            (kind,) = self._unpack("I")
            yield key, self._array(with_vocabulary) if kind == _ARRAY else self._value(kind)

    def _value(self, kind: int) -> Any:
        return self._text() if kind == _STRING else self._unpack(_SCALARS[kind])[0]

    def _array(self, with_texts: bool) -> list[Any] | None:
        kind, count = self._unpack("IQ")
        if kind == _STRING:
            return self._texts(count, with_texts)
        start = self._position
        self._skip(count * struct.calcsize("<" + _SCALARS[kind]))
        return list(struct.unpack(f"<{count}{_SCALARS[kind]}", self._data[start : self._position]))

    def _texts(self, count: int, is_wanted: bool) -> list[str] | None:
        """A vocabulary has hundreds of thousands: nothing is called for one that need not be."""
        data, position, end = self._data, self._position, len(self._data)
        texts = []
        for _ in range(count):
            start = position + _LENGTH.size
            (length,) = _LENGTH.unpack_from(data, position)
            if length > min(end - start, _LONGEST_TEXT):
                raise ValueError("text too long")
            position = start + length
            if is_wanted:
                texts.append(str(data[start:position], "utf-8", "replace"))
        self._position = position
        return texts if is_wanted else None

    def _text(self) -> str:
        (length,) = self._unpack("Q")
        if length > _LONGEST_TEXT:
            raise ValueError("text too long")
        start = self._position
        self._skip(length)
        return self._data[start : self._position].decode("utf-8", errors="replace")

    def _unpack(self, layout: str) -> tuple[Any, ...]:
        values = struct.unpack_from("<" + layout, self._data, self._position)
        self._position += struct.calcsize("<" + layout)
        return values

    def _skip(self, length: int) -> None:
        if length > len(self._data) - self._position:
            raise ValueError("the file ends too early")
        self._position += length
