"""Tiny random models in sentence-transformers' folders."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoModel

from tgwui_k8s.demo.tiny_tokenizer import PAD_TOKEN_ID, VOCAB_SIZE, write_tokenizer

SIZE = 32
TEXTS = (
    "The quick brown fox",
    "jumps over the lazy dog while seven wizards brew forty jugs of black quartz.",
    "größer",
    "A pod is ready when its model is loaded and warm.",
)


def make_sentence_model(
    folder: Path,
    *,
    architecture: str = "bert",
    pooling: str = "mean",
    normalizes: bool = True,
    max_length: int | None = 64,
    **config: Any,
) -> Path:
    """Write a model with random weights that differ from token to token."""
    torch.manual_seed(1)
    fields: dict[str, Any] = {
        "vocab_size": VOCAB_SIZE,
        "hidden_size": SIZE,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "intermediate_size": 64,
        "max_position_embeddings": 128,
        "pad_token_id": PAD_TOKEN_ID,
        **({"num_key_value_heads": 2, "head_dim": 16} if architecture == "qwen3" else {}),
        **config,
    }
    model = AutoModel.from_config(AutoConfig.for_model(architecture, **fields))
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    model.save_pretrained(folder)
    write_tokenizer(folder, model_max_length=128)
    modules = ["Transformer", "Pooling", *(["Normalize"] if normalizes else [])]
    paths = ["", "1_Pooling", "2_Normalize"]
    _write(
        folder / "modules.json",
        [
            {
                "idx": i,
                "name": str(i),
                "path": paths[i],
                "type": f"sentence_transformers.models.{m}",
            }
            for i, m in enumerate(modules)
        ],
    )
    flags = {
        f"pooling_mode_{name}": name.startswith(pooling)
        for name in ("cls_token", "mean_tokens", "max_tokens", "lasttoken")
    }
    _write(folder / "1_Pooling" / "config.json", {"word_embedding_dimension": SIZE, **flags})
    _write(
        folder / "sentence_bert_config.json",
        {"max_seq_length": max_length, "do_lower_case": False},
    )
    return folder


def _write(path: Path, content: Any) -> None:
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps(content), encoding="utf-8")
