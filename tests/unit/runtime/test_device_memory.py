"""What a GPU's limit leaves, on a card that is played, and on a real one where there is one."""

from __future__ import annotations

from dataclasses import dataclass, field

import pytest

torch = pytest.importorskip("torch")

from tgwui_k8s.contract import LoadRequest  # noqa: E402
from tgwui_k8s.errors import StartupError, UnsupportedModelError  # noqa: E402
from tgwui_k8s.runtime.device_memory import (  # noqa: E402
    CONTEXT_BYTES,
    free_memory,
    keep_within_limit,
)

GIB = 1 << 30
GPU = torch.device("cuda", 0)


@dataclass
class Card:
    """A card of 24 GiB; another process holds some of it, and our allocator too."""

    others: int = 4 * GIB
    reserved: int = 3 * GIB
    allocated: int = 2 * GIB
    fractions: list[float] = field(default_factory=list)

    def put_in(self, patch: pytest.MonkeyPatch) -> Card:
        free = 24 * GIB - self.others - self.reserved
        patch.setattr(torch.cuda, "mem_get_info", lambda device: (free, 24 * GIB))
        patch.setattr(torch.cuda, "memory_reserved", lambda device: self.reserved)
        patch.setattr(torch.cuda, "memory_allocated", lambda device: self.allocated)
        patch.setattr(
            torch.cuda,
            "set_per_process_memory_fraction",
            lambda fraction, device: self.fractions.append(fraction),
        )
        return self


def request(share: str | None = None, **fields: object) -> LoadRequest:
    options = {} if share is None else {"gpu_memory_fraction": share}
    return LoadRequest(model_path="x", loader="Transformers", options=options, **fields)


@pytest.mark.parametrize(
    ("fields", "gib"),
    [
        ({}, 18),
        ({"share": "0.5"}, 9.5),
        ({"memory_limit_bytes": 8 * GIB}, 5.5),
        ({"share": "0.5", "memory_limit_bytes": 8 * GIB}, 5.5),
        ({"share": "1"}, 18),
        ({"share": "0.02"}, 0),
    ],
)
def test_free_memory_is_within_the_limit(
    monkeypatch: pytest.MonkeyPatch, fields: dict[str, object], gib: float
) -> None:
    """Less what our tensors and the driver hold, and never more than the card has left."""
    Card().put_in(monkeypatch)
    free = free_memory(request(**fields), GPU)
    assert (free.num_bytes, free.is_limited) == (gib * GIB, True)


def test_the_allocator_keeps_the_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    """Only where there is one."""
    card = Card().put_in(monkeypatch)
    keep_within_limit(request(), GPU)
    assert card.fractions == []
    keep_within_limit(request(share="0.25"), GPU)
    assert card.fractions == [(6 * GIB - CONTEXT_BYTES) / (24 * GIB)]


def test_a_share_of_no_gpu_is_refused() -> None:
    """The message names the flag that is meant for CPUs."""
    with pytest.raises(UnsupportedModelError, match="--memory-limit"):
        free_memory(request(share="0.5"), torch.device("cpu"))


@pytest.mark.parametrize("share", ["0", "-1", "1.5", "half", "nan"])
def test_a_share_that_is_none_is_refused(monkeypatch: pytest.MonkeyPatch, share: str) -> None:
    """By its value."""
    Card().put_in(monkeypatch)
    with pytest.raises(StartupError, match=f"gpu_memory_fraction={share} is no number"):
        free_memory(request(share=share), GPU)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_a_real_card_refuses_more() -> None:
    """PyTorch itself ends what goes beyond the limit."""
    device = torch.device("cuda", torch.cuda.current_device())
    limited = request(memory_limit_bytes=CONTEXT_BYTES + (64 << 20))
    keep_within_limit(limited, device)
    try:
        assert free_memory(limited, device).num_bytes <= 64 << 20
        with pytest.raises(torch.OutOfMemoryError):
            torch.empty(128 << 20, dtype=torch.uint8, device=device)
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0, device)
