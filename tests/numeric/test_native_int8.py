"""int8 weights in the native decoder: rounded as documented, and multiplied exactly."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

from loaders.native import NativeLoader
from tests.helpers.native import execute, load, needs_native_decoder, part, with_each_numerics
from tests.helpers.versions import needs_transformers
from tests.numeric.test_native_decoder import MODELS, TOKENS
from tgwui_k8s.demo.tiny import make_checkpoint
from tgwui_k8s.errors import UnsupportedModelError
from tgwui_k8s.runtime.native import INT8_GROUP, NativeLinear

pytestmark = [needs_native_decoder, needs_transformers("5")]


def rounded(weights: np.ndarray) -> np.ndarray:
    """The documented rounding: per row and group of 64, scale = max / 127, ties to even."""
    parts = []
    for first in range(0, weights.shape[1], INT8_GROUP):
        group = weights[:, first : first + INT8_GROUP]
        most = np.abs(group).max(axis=1, keepdims=True)
        inverse = np.divide(127, most, out=np.zeros_like(most), where=most > 0)
        parts.append(np.rint(group * inverse) * (most / np.float32(127)))
    return np.concatenate(parts, axis=1).astype(np.float32)


@with_each_numerics
def test_packed_weights_are_rounded_as_documented(variant, tmp_path):
    """Every row read back is scale x integer of its groups, a last group of 16 inputs included."""
    overrides = {"hidden_size": 80, "num_attention_heads": 5, "num_key_value_heads": 5}
    folder = make_checkpoint(tmp_path, "llama", dtype="bfloat16", head_dim=16, **overrides)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    runner = load(folder, variant, options={"weights": "int8"})
    layer = model.model.layers[1]
    expected = {
        NativeLinear.OUT: layer.self_attn.o_proj.weight,
        NativeLinear.DOWN: layer.mlp.down_proj.weight,
        NativeLinear.HEAD: model.lm_head.weight,
        NativeLinear.QKV: torch.cat(
            [getattr(layer.self_attn, f"{name}_proj").weight for name in "qkv"]
        ),
    }
    for which, weights in expected.items():
        got = [runner._decoder.get_row(which, 1, row) for row in range(len(weights))]
        np.testing.assert_array_equal(np.stack(got), rounded(weights.detach().numpy()))
    runner.close()


@with_each_numerics
@pytest.mark.parametrize("name", ["llama", "llama tied", "mistral", "qwen2", "qwen3"])
def test_logits_are_those_of_the_rounded_weights(name, variant, tmp_path):
    """Beside float32 of the rounded weights no more is lost than in bf16."""
    architecture, overrides = MODELS[name]
    folder = make_checkpoint(tmp_path, architecture, dtype="bfloat16", **overrides)
    model = AutoModelForCausalLM.from_pretrained(
        folder, dtype=torch.float32, attn_implementation="eager"
    )
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, torch.nn.Linear):
                module.weight.copy_(torch.from_numpy(rounded(module.weight.numpy())))
        expected = model(torch.tensor([TOKENS])).logits[0].numpy()
        own = model.bfloat16()(torch.tensor([TOKENS])).logits[0].float().numpy()
    runner = load(folder, variant, options={"weights": "int8"})
    logits = execute(runner, part(runner, TOKENS))
    assert np.abs(logits - expected).mean() < np.abs(own - expected).mean()
    assert runner.info.quantization == "int8"
    runner.close()


@with_each_numerics
def test_outliers_among_activations_cost_nothing_else(variant, tmp_path):
    """One dimension a hundred times the others leaves the rest of a row as exact as it was."""
    folder = make_checkpoint(tmp_path, "llama", dtype="float32")
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    gaps = []
    for outlier in (1.0, 128.0):  # in a dimension that no weight looks at
        with torch.no_grad():
            for layer in model.model.layers:
                layer.post_attention_layernorm.weight[3] = outlier
                layer.mlp.gate_proj.weight[:, 3] = layer.mlp.up_proj.weight[:, 3] = 0.0
            expected = model(torch.tensor([TOKENS])).logits[0].numpy()
        model.save_pretrained(folder)
        runner = load(folder, variant, options={"weights": "int8"})
        gaps.append(np.abs(execute(runner, part(runner, TOKENS)) - expected).mean())
        runner.close()
    assert gaps[1] < 1.2 * gaps[0]


def test_int8_weights_take_half_the_memory(tmp_path):
    """68 bytes for 64 weights instead of 128, and the model says so."""
    folder = make_checkpoint(tmp_path, "llama", dtype="bfloat16", tie_word_embeddings=True)
    full, small = load(folder), load(folder, options={"weights": "int8"})
    assert small.info.weight_bytes == full.info.weight_bytes * 68 // 128
    assert small.info.num_parameters == full.info.num_parameters
    assert small.info.fingerprint != full.info.fingerprint
    assert full.info.quantization is None
    full.close()
    small.close()


@with_each_numerics
def test_a_broken_row_stays_alone(variant, tmp_path):
    """Not a number in one sequence's activations gives NaN there and changes nobody else's bits."""
    folder = make_checkpoint(tmp_path, "llama", dtype="float32")
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    with torch.no_grad():
        model.model.embed_tokens.weight[7] = float("nan")
        model.save_pretrained(folder)
    runner = load(folder, variant, options={"weights": "int8"})
    healthy = [token for token in TOKENS if token != 7][:20]
    alone = execute(runner, part(runner, healthy))
    both = execute(runner, part(runner, [9, 7], first_block=4), part(runner, healthy))
    assert np.isnan(both[1]).all()
    np.testing.assert_array_equal(both[2:], alone)
    runner.close()


def test_unknown_weights_are_refused_with_what_there_is(tmp_path):
    """A typing error in the option names the choices."""
    folder = make_checkpoint(tmp_path, "llama", dtype="bfloat16")
    with pytest.raises(UnsupportedModelError, match="bfloat16 or int8"):
        load(folder, options={"weights": "int4"})
    assert "int8" in NativeLoader.options["weights"]
