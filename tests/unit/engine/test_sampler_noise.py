"""The noise is a pure function with published arithmetic; these values must never change."""

from __future__ import annotations

import hashlib
import struct

import pytest

from tgwui_k8s.runtime.samplers.noise import Use, uniform


@pytest.mark.parametrize(
    ("counter", "expected"),
    [
        ((0, 0, 0, Use.TOKEN), "0x1.42835f1494241p-1"),
        ((0, 0, 0, Use.XTC), "0x1.2bed9e5e9a4f4p-3"),
        ((1, 0, 0, Use.TOKEN), "0x1.6642f0c481cf4p-3"),
        ((42, 0, 1, Use.TOKEN), "0x1.da69a61218e80p-5"),
        ((42, 3, 17, Use.TOKEN), "0x1.03cc576d9a0c1p-1"),
        ((18446744073709551615, 1, 100000, Use.XTC), "0x1.f008665942c30p-1"),
    ],
)
def test_noise_keeps_its_values(counter: tuple[int, int, int, Use], expected: str) -> None:
    """Seeds give the same tokens in every release: the values are pinned to the last bit."""
    assert uniform(*counter).hex() == expected


def test_noise_is_blake2b_of_four_words() -> None:
    """Anyone can repeat a draw from the definition alone."""
    digest = hashlib.blake2b(struct.pack("<4Q", 7, 2, 100, 1), digest_size=8).digest()

    assert uniform(7, 2, 100, Use.XTC) == (int.from_bytes(digest, "little") >> 11) / 2**53


def test_seeds_count_modulo_two_to_the_64() -> None:
    """Negative and large seeds are seeds too."""
    assert uniform(-1, 0, 0, Use.TOKEN) == uniform(2**64 - 1, 0, 0, Use.TOKEN)


def test_every_word_of_the_counter_matters() -> None:
    """Neighbouring seeds, choices, positions and uses share no numbers."""
    drawn = {
        uniform(seed, choice, position, use)
        for seed in range(4)
        for choice in range(4)
        for position in range(4)
        for use in Use
    }

    assert len(drawn) == 4 * 4 * 4 * len(Use)


def test_noise_is_uniform() -> None:
    """Ten thousand draws fill sixteen bins evenly (chi-square, 15 degrees of freedom)."""
    bins = [0] * 16
    for position in range(10_000):
        bins[int(16 * uniform(42, 0, position, Use.TOKEN))] += 1

    assert sum((count - 625) ** 2 / 625 for count in bins) < 40
