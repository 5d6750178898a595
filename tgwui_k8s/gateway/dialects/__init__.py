"""What engines speak: one file per dialect, and which of them can serve a route."""

from __future__ import annotations

from collections.abc import Mapping

from tgwui_k8s.gateway.dialects.base import Dialect
from tgwui_k8s.gateway.dialects.kserve import KserveDialect
from tgwui_k8s.gateway.dialects.openai import LlamaServerDialect, OwnDialect, VllmDialect
from tgwui_k8s.gateway.dialects.tgi import TgiDialect
from tgwui_k8s.gateway.endpoint import DialectName

DIALECTS: Mapping[DialectName, Dialect] = {
    "tgwui": OwnDialect(),
    "vllm": VllmDialect(),
    "llama-server": LlamaServerDialect(),
    "tgi": TgiDialect(),
    "kserve": KserveDialect(),
}


def dialects_for(path: str) -> frozenset[DialectName]:
    """The dialects whose engines can serve a route."""
    return frozenset(name for name, dialect in DIALECTS.items() if dialect.serves(path))
