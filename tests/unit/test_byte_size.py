"""Sizes as people write them."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tgwui_k8s.byte_size import format_byte_size, parse_byte_size


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("0", 0),
        ("1048576", 1024**2),
        ("7B", 7),
        ("4GiB", 4 * 1024**3),
        ("4Gi", 4 * 1024**3),
        ("4gib", 4 * 1024**3),
        ("512MB", 512_000_000),
        ("512M", 512_000_000),
        ("12k", 12_000),
        ("1.5 GiB", 3 * 1024**3 // 2),
        (" 2TiB ", 2 * 1024**4),
    ],
)
def test_reads_sizes(text: str, size: int) -> None:
    """An `i` means powers of 1024, its absence powers of 1000, as in Kubernetes."""
    assert size == parse_byte_size(text)


@pytest.mark.parametrize("text", ["", "GiB", "-1", "4XB", "1e9", "100m", "4 G i B", "4GiBs", "nan"])
def test_refuses_anything_else(text: str) -> None:
    """What is no size is an error that shows examples; Kubernetes' milli suffix is none."""
    with pytest.raises(ValueError, match="such as 4GiB"):
        parse_byte_size(text)


@pytest.mark.parametrize(
    ("size", "text"),
    [
        (0, "0B"),
        (1023, "1023B"),
        (1024, "1KiB"),
        (1600, "1.6KiB"),
        (4 * 1024**3, "4GiB"),
        (3000 * 1024**4, "3000TiB"),
    ],
)
def test_writes_sizes(size: int, text: str) -> None:
    """The largest binary unit, one decimal where needed."""
    assert text == format_byte_size(size)


@given(st.integers(0, 2**60))
def test_what_is_written_can_be_read(size: int) -> None:
    """Writing and reading gives the size back, as exactly as one decimal can."""
    assert size == pytest.approx(parse_byte_size(format_byte_size(size)), rel=0.06, abs=0)
