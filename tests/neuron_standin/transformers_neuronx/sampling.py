"""Drawing tokens on the CPU from torch's global generator."""

from __future__ import annotations

from typing import Any

import torch


def validate_top_k_top_p(top_k: Any, top_p: Any) -> None:
    """Raises ValueError, before anything has run."""
    if top_k is not None and (not isinstance(top_k, int) or top_k <= 0):
        raise ValueError("top_k has to be a strictly positive int.")
    if not isinstance(top_p, float) or not 0.0 < top_p <= 1.0:
        raise ValueError(
            "top_p has to be a strictly positive float that less than or equal to 1.0."
        )


def validate_temperature(temperature: Any) -> None:
    """Raises ValueError; checked where it is used, after the prompt has run."""
    if not isinstance(temperature, float) or temperature <= 0.0:
        raise ValueError("temperature has to be a strictly positive float.")


def ban_repeated_ngrams(logits: torch.Tensor, ids: torch.Tensor, size: int) -> torch.Tensor:
    """Minus infinity for every token that would repeat an n-gram of its row."""
    for row, text in enumerate(ids.tolist()):
        prefix = text[len(text) - size + 1 :]
        for start in range(len(text) - size + 1):
            if text[start : start + size - 1] == prefix:
                logits[row, text[start + size - 1]] = -torch.inf
    return logits


def filter_logits(
    logits: torch.Tensor, temperature: float, top_k: int | None, top_p: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """Probabilities of the tokens that are left, and their ids: (batch, kept) each."""
    logits = logits / temperature
    kept = min(top_k or logits.shape[-1], logits.shape[-1])
    values, indices = logits.topk(kept, dim=-1)
    if top_p < 1.0:
        cumulative = values.softmax(dim=-1).cumsum(dim=-1)
        beyond = cumulative > top_p
        beyond = torch.cat((torch.zeros_like(beyond[:, :1]), beyond[:, :-1]), dim=-1)
        values = values.masked_fill(beyond, -torch.inf)
    return values.softmax(dim=-1), indices


def draw(probabilities: torch.Tensor, indices: torch.Tensor) -> torch.Tensor:
    """(batch, 1) ids."""
    return indices.gather(1, torch.multinomial(probabilities, num_samples=1))
