"""Random numbers without a generator: every draw is a pure function of what it is for.

Counter-based noise (Salmon, Moraes, Dror, Shaw: "Parallel Random Numbers: As Easy as 1, 2, 3",
SC'11): hash the counter instead of stepping a state. The hash is BLAKE2b (RFC 7693), so any
language can repeat a draw, and no draw depends on the batch, on a device, or on draws before it.
"""

from __future__ import annotations

import hashlib
import struct
from enum import IntEnum

_MASK = 2**64 - 1


class Use(IntEnum):
    """What a number is drawn for; two uses at one position are independent."""

    TOKEN = 0
    XTC = 1


def uniform(seed: int, choice: int, position: int, use: Use) -> float:
    """A double in [0, 1): the upper 53 bits of BLAKE2b-64 over four little-endian 64-bit words.

    The words are seed (modulo 2**64), choice, position and use.
    """
    message = struct.pack("<4Q", seed & _MASK, choice, position, use)
    digest = hashlib.blake2b(message, digest_size=8, usedforsecurity=False).digest()
    return float(int.from_bytes(digest, "little") >> 11) * 2.0**-53
