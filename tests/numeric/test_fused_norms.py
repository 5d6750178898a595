"""Norms that are taken over give what they gave, and those that differ are left alone."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from tests.helpers.transformers_models import load_reference, random_tokens
from tgwui_k8s.demo.tiny import make_checkpoint
from tgwui_k8s.runtime.cuda.fused_norms import fuse_norms


@pytest.mark.parametrize(
    ("architecture", "norms_per_layer"), [("llama", 2), ("qwen3", 4), ("gemma2", 0), ("gpt2", 0)]
)
def test_logits_stay(architecture: str, norms_per_layer: int, tmp_path: Path) -> None:
    """Llama's and Qwen's norms, heads' included, and the last; Gemma adds 1 to its weights."""
    make_checkpoint(tmp_path, architecture)
    model = load_reference(tmp_path)
    _scatter_weights(model)
    tokens = torch.tensor([random_tokens(20, seed=1)])
    with torch.inference_mode():
        expected = model(tokens).logits
        number = fuse_norms(model)
        logits = model(tokens).logits
    num_layers = model.config.num_hidden_layers
    assert number == (num_layers * norms_per_layer + 1 if norms_per_layer else 0)
    torch.testing.assert_close(logits, expected, rtol=1e-5, atol=1e-5)


def test_bfloat16_is_rounded_once_less() -> None:
    """A fused norm is nearer to float64 than the module was."""
    from transformers.models.llama.modeling_llama import LlamaRMSNorm

    norm = LlamaRMSNorm(256).bfloat16()
    _scatter_weights(norm)
    x = torch.randn(64, 256).bfloat16()
    exact = torch.nn.functional.rms_norm(x.double(), (256,), norm.weight.double(), 1e-6)
    with torch.inference_mode():
        before = (norm(x).double() - exact).abs().mean()
        assert fuse_norms(norm) == 1
        assert (norm(x).double() - exact).abs().mean() < before


def _scatter_weights(model: torch.nn.Module) -> None:
    """Norms as after training: not all ones."""
    for name, parameter in model.named_parameters():
        if parameter.dim() == 1 and name.endswith("weight"):
            parameter.data = (torch.randn(parameter.shape) * 0.3 + 1).to(parameter.dtype)
