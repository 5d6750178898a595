"""LoRA adapters for tiny models, made and saved by PEFT itself."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, PeftModel, get_peft_model

from tests.helpers.transformers_models import load_reference

ATTENTION = ("q_proj", "k_proj", "v_proj", "o_proj")


def make_adapter(model: Path, folder: Path, *, seed: int, **fields: Any) -> Path:
    """Write a random adapter for the model, strong enough to change every answer; returns it."""
    config = {"r": 4, "lora_alpha": 16, "target_modules": list(ATTENTION), **fields}
    adapted = get_peft_model(load_reference(model), LoraConfig(task_type="CAUSAL_LM", **config))
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in adapted.named_parameters():
        if "lora_" in name:
            parameter.data = 0.25 * torch.randn(parameter.shape, generator=generator)
    adapted.save_pretrained(folder)
    return folder


def edit_config(folder: Path, **fields: Any) -> Path:
    """Change the adapter's configuration; None drops a field."""
    path = folder / "adapter_config.json"
    config = {**json.loads(path.read_text()), **fields}
    path.write_text(json.dumps({key: value for key, value in config.items() if value is not None}))
    return folder


def peft_tokens(
    model: Path, adapter: Path | None, prompt: Sequence[int], num_tokens: int
) -> list[int]:
    """What PEFT's model says greedily, computed whole for every token."""
    reference: Any = load_reference(model)
    if adapter is not None:
        reference = PeftModel.from_pretrained(reference, adapter).eval()
    tokens = list(prompt)
    with torch.inference_mode():
        for _ in range(num_tokens):
            logits = reference(torch.tensor([tokens])).logits
            tokens.append(int(logits[0, -1].argmax()))
    return tokens[len(prompt) :]
