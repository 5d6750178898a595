"""Speculative decoding: importable, and not imitated."""

from __future__ import annotations

from typing import Any


class FusedSpeculativeDecoder:
    """A draft and a target model as one."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        raise NotImplementedError("the double has no speculative decoding")
