"""Numbers of bytes as people write them: 4GiB, 512MB, 1.5Gi, or a plain number."""

from __future__ import annotations

import re

_SIZE = re.compile(r"(\d+(?:\.\d+)?)\s*(?:([kmgt])(i?)b?|b)?", re.IGNORECASE)
_POWERS = {"k": 1, "m": 2, "g": 3, "t": 4}


def parse_byte_size(text: str) -> int:
    """Read `4GiB`, `4Gi`, `512MB`, `512M`, `1.5 GiB` or `1048576`.

    As in Kubernetes, an `i` means powers of 1024 and its absence powers of 1000. Case does not
    matter. Raises `ValueError` for anything else.
    """
    match = _SIZE.fullmatch(text.strip())
    if match is None or text.strip().endswith("m"):  # Kubernetes' 100m is a tenth of a byte
        raise ValueError(f"'{text[:100]}' is not a size such as 4GiB, 512MB or 1048576")
    number, unit, binary = match.groups()
    factor = (1024 if binary else 1000) ** _POWERS[unit.lower()] if unit else 1
    return round(float(number) * factor) if "." in number else int(number) * factor


def format_byte_size(size: int) -> str:
    """The size in the largest binary unit that it reaches, with one decimal where it is not whole.

    `format_byte_size(4 * 1024**3) == "4GiB"`; `format_byte_size(1600) == "1.6KiB"`.
    """
    units = ("B", "KiB", "MiB", "GiB", "TiB")
    power = min(max(size.bit_length() - 1, 0) // 10, len(units) - 1)
    return f"{size / 1024**power:.1f}".removesuffix(".0") + units[power]
