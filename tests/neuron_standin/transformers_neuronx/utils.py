"""Head padding, and tokenizing several prompts for one call."""

from __future__ import annotations

from typing import Any

import torch


def get_qkv_padding(n_head: int, n_kv_head: int, tp_degree: int) -> tuple[int, int]:
    """Query and key-value heads after padding and replication over `tp_degree` cores."""
    padded = -(-n_head // tp_degree) * tp_degree
    if n_head == n_kv_head:
        return padded, padded
    if n_kv_head % tp_degree == 0:
        return n_head, n_kv_head
    if tp_degree % n_kv_head == 0:
        return padded, tp_degree
    return padded, padded


def batch_tokenize(
    tokenizer: Any, input_texts: list[str], pad_token: str | None = None
) -> tuple[torch.Tensor, torch.Tensor]:
    """Token ids, padded on the left, and where each row's text starts."""
    tokenizer.padding_side = "left"
    tokenizer.pad_token = pad_token or tokenizer.eos_token
    encoded = tokenizer(input_texts, padding=True, return_tensors="pt")
    _, start_ids = encoded["attention_mask"].max(dim=1)
    return encoded["input_ids"], start_ids
