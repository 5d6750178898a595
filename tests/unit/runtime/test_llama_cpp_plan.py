"""What of a GGUF file's metadata decides how its model computes."""

from __future__ import annotations

from typing import Any

import pytest

from tgwui_k8s.runtime.llama_cpp.options import LlamaCppOptions
from tgwui_k8s.runtime.llama_cpp.plan import GGUFShape


@pytest.mark.parametrize(
    ("scaling", "options", "num_cells", "is_long"),
    [
        ({"original_context_length": 4096}, {}, 4096, False),
        ({"original_context_length": 4096}, {}, 4128, True),
        ({"original_context_length": 4096, "type": "longrope"}, {}, 8192, True),
        ({"original_context_length": 4096}, {"yarn_orig_ctx": 16384}, 8192, False),
        ({"original_context_length": 4096, "type": "yarn"}, {}, 8192, False),
        ({}, {}, 8192, False),
    ],
)
def test_longrope_takes_its_long_factors_where_the_cache_exceeds_the_original_context(
    scaling: dict[str, Any], options: dict[str, Any], num_cells: int, is_long: bool
) -> None:
    """And no other kind of scaling knows how large the cache is."""
    metadata = {f"phi3.rope.scaling.{name}": value for name, value in scaling.items()}
    shape = GGUFShape({"general.architecture": "phi3", **metadata})
    assert shape.takes_long_factors(LlamaCppOptions(**options), num_cells) is is_long
