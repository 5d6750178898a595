"""Whether Neuron's Transformers (4.48) would read the rotary embeddings that the model has.

Transformers 5 writes them as `rope_parameters`; 4.48 reads `rope_theta` and `rope_scaling`, knows
nothing of the new key, and would compute with a theta of 10000: wrong text, and no error.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from tgwui_k8s.errors import UnsupportedModelError

_DEFAULT_THETA = 10000.0


def check_rope(config: Mapping[str, Any]) -> None:
    """Raise `UnsupportedModelError`, with the lines that config.json lacks, where it would not."""
    new = config.get("rope_parameters")
    if not isinstance(new, Mapping):
        return
    wanted = {"rope_theta": float(new.get("rope_theta", _DEFAULT_THETA))}, _scaling(new)
    found = (
        {"rope_theta": float(config.get("rope_theta", _DEFAULT_THETA))},
        _scaling(config.get("rope_scaling") or {}),
    )
    if wanted == found:
        return
    theta, scaling = wanted
    lines = json.dumps({**theta, "rope_scaling": scaling or None})[1:-1]
    raise UnsupportedModelError(
        "config.json was written by Transformers 5: its rope_parameters mean nothing to the "
        f"Transformers 4.48 below the Neuron loader. Add to it: {lines}"
    )


def _scaling(parameters: Mapping[str, Any]) -> dict[str, Any]:
    """What is not the default; old files say `type` for `rope_type`."""
    scaling = {name: value for name, value in parameters.items() if name != "rope_theta"}
    kind = scaling.pop("type", None)
    kind = scaling.pop("rope_type", kind) or "default"
    return {} if kind == "default" else {"rope_type": kind, **scaling}
