"""How long a sequence may be: the model's own limit, and what its rotary scaling allows."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from tgwui_k8s.errors import UnsupportedModelError


def choose_max_model_len(
    trained: Any, ropes: Iterable[Mapping[str, Any]], requested: int | None
) -> int:
    """The longest sequence: what is asked for, or the model's own limit.

    `trained` is the configuration's `max_position_embeddings`, `ropes` are its rotary parameters.
    RoPE that is scaled without a fixed end (linear, dynamic) may be stretched up to its factor by
    asking for it. Raises `UnsupportedModelError` for more than the model can.
    """
    if not isinstance(trained, int) or trained <= 0:
        if requested is None:
            raise UnsupportedModelError(
                "the model does not say how long its context is; set --max-model-len"
            )
        return requested
    default = longest = trained
    for rope in ropes:
        factor = rope.get("factor") or 1.0
        if rope.get("rope_type") == "yarn":
            original = rope.get("original_max_position_embeddings") or trained
            default = max(default, int(original * factor))
        elif rope.get("rope_type") in ("linear", "dynamic"):
            longest = max(longest, int(trained * factor))
    longest = max(longest, default)
    if requested is None:
        return default
    if requested > longest:
        raise UnsupportedModelError(
            f"--max-model-len {requested} is more than the model's {longest} tokens"
        )
    return requested
