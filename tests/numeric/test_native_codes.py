"""AWQ and GPTQ in the native decoder: the formats' own numbers, multiplied exactly."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file, save_file
from transformers import AutoModelForCausalLM

from tests.helpers.native import execute, load, needs_native_decoder, part, with_each_numerics
from tests.helpers.quantized_checkpoints import (
    FORMATS,
    Format,
    describe,
    make_quantized,
    round_weight,
)
from tests.helpers.versions import needs_transformers
from tests.numeric.test_native_decoder import TOKENS
from tgwui_k8s.contract import LoadRequest
from tgwui_k8s.demo.tiny import make_checkpoint
from tgwui_k8s.errors import BrokenModelError, UnsupportedModelError
from tgwui_k8s.registry import likely_loader, load_model
from tgwui_k8s.runtime.native import NativeDecoder, NativeLinear

pytestmark = [needs_native_decoder, needs_transformers("5")]

SUPPORTED = [name for name in FORMATS if "act-order" not in name]
UP_PROJ = "model.layers.1.mlp.up_proj"


@with_each_numerics
@pytest.mark.parametrize("name", SUPPORTED)
def test_weights_read_back_are_the_formula(name, variant, tmp_path):
    """(code - zero) * scale of every weight, in float32, whatever way the checkpoint packs it."""
    form = FORMATS[name]
    plain = load_file(make_checkpoint(tmp_path / "plain", "llama") / "model.safetensors")
    runner = load(make_quantized(tmp_path / "model", form), variant)
    layers = {
        NativeLinear.QKV: [f"self_attn.{name}_proj" for name in "qkv"],
        NativeLinear.OUT: ["self_attn.o_proj"],
        NativeLinear.DOWN: ["mlp.down_proj"],
    }
    for which, names in layers.items():
        expected = []
        for module in names:
            weight = plain[f"model.layers.1.{module}.weight"]
            rounded = round_weight(weight, bits=form.bits, group_size=form.group_size, groups=None)
            steps = rounded.codes.astype(np.float32) - rounded.zeros[rounded.groups]
            expected.append((steps * rounded.scales.astype(np.float32)[rounded.groups]).T)
        rows = np.concatenate(expected)
        got = [runner._decoder.get_row(which, 1, row) for row in range(len(rows))]
        np.testing.assert_array_equal(np.stack(got), rows)
    runner.close()


@with_each_numerics
@pytest.mark.parametrize("name", SUPPORTED)
@pytest.mark.parametrize("architecture", ["llama", "qwen2", "qwen3"])
def test_logits_are_those_of_the_dequantized_weights(name, architecture, variant, tmp_path):
    """Beside float32 of the dequantized weights less is lost than in bf16."""
    twin = tmp_path / "twin"
    shape = {"architecture": architecture}
    folder = make_quantized(tmp_path / "model", FORMATS[name], twin=twin, **shape)
    model = AutoModelForCausalLM.from_pretrained(
        twin, dtype=torch.float32, attn_implementation="eager"
    )
    with torch.no_grad():
        expected = model(torch.tensor([TOKENS])).logits[0].numpy()
        own = model.bfloat16()(torch.tensor([TOKENS])).logits[0].float().numpy()
    runner = load(folder, variant)
    logits = execute(runner, part(runner, TOKENS))
    assert np.abs(logits - expected).mean() < np.abs(own - expected).mean()
    assert runner.info.quantization == f"{FORMATS[name].method} {FORMATS[name].bits} bit"
    runner.close()


@with_each_numerics
def test_rows_do_not_depend_on_the_batch(variant, tmp_path):
    """The same bits alone, in chunks, and beside others."""
    runner = load(make_quantized(tmp_path, FORMATS["AWQ"]), variant)
    alone = execute(runner, part(runner, TOKENS))
    first, rest = TOKENS[:7], TOKENS[7:]
    others = [part(runner, TOKENS[:n], first_block=8 + 4 * n) for n in (1, 2, 5)]
    chunks = [
        execute(runner, part(runner, first), *others)[: len(first)],
        execute(runner, *others, part(runner, rest, start=len(first)))[-len(rest) :],
    ]
    np.testing.assert_array_equal(np.concatenate(chunks), alone)
    runner.close()


def test_they_take_the_memory_of_four_bits(tmp_path):
    """Codes, and per group a scale of 4 bytes and a zero of 1; embedding and head stay in bf16."""
    shape = {"hidden_size": 128, "intermediate_size": 256, "num_hidden_layers": 1}
    form = Format("awq", group_size=128)
    folder = make_quantized(tmp_path, form, **shape, tie_word_embeddings=True)
    runner = load(folder)
    packed = runner.info.num_parameters - runner.info.vocab_size * 128
    expected = 2 * runner.info.vocab_size * 128 + packed // 2 + packed // 128 * 5
    assert runner.info.weight_bytes == expected
    runner.close()


# ------------------------------------------------------------------------------------ who runs what


def request(folder, **fields) -> LoadRequest:
    """As from a command line that names no loader."""
    return LoadRequest(
        model_path=str(folder), max_num_seqs=2, **{"loader_is_inferred": True, **fields}
    )


@pytest.mark.parametrize(("method", "loader"), [("AWQ", "AutoAWQ"), ("GPTQ", "AutoGPTQ")])
def test_it_is_tried_first_where_nobody_chose(method, loader, tmp_path):
    """And not where the loader was named."""
    folder = make_quantized(tmp_path, FORMATS[method])
    inferred = request(folder, loader=loader)
    assert likely_loader(inferred) == "Native"
    runner = load_model(inferred, lambda _: None)
    assert runner.info.loader == "Native"
    runner.close()
    named = load_model(request(folder, loader=loader, loader_is_inferred=False), lambda _: None)
    assert named.info.loader == loader
    named.close()


def test_a_gpu_is_left_to_the_other_loader(tmp_path, monkeypatch):
    """Where one is there, nobody chose, and nobody said --device cpu."""
    folder = make_quantized(tmp_path, FORMATS["AWQ"])
    monkeypatch.setattr("loaders.native.has_nvidia_gpu", lambda: True)
    assert likely_loader(request(folder, loader="AutoAWQ")) == "AutoAWQ"
    assert likely_loader(request(folder, loader="AutoAWQ", device="cpu")) == "Native"
    runner = load(folder)  # with --loader Native
    assert runner.info.loader == "Native"
    runner.close()


def test_act_order_is_left_to_its_loader(tmp_path, caplog):
    """It runs through Transformers."""
    folder = make_quantized(tmp_path, FORMATS["GPTQ, act-order"])
    caplog.set_level("INFO")
    runner = load_model(request(folder, loader="AutoGPTQ"), lambda _: None)
    assert runner.info.loader == "AutoGPTQ"
    assert "loader Native is not used: the native decoder has no gptq with act-order" in caplog.text
    runner.close()


def changed(folder, **parts):
    """The checkpoint with parts of one layer replaced."""
    path = folder / "model.safetensors"
    tensors = load_file(path)
    save_file(tensors | {f"{UP_PROJ}.{name}": t for name, t in parts.items()}, path)
    return folder


def test_act_order_is_seen_in_the_tensors_too(tmp_path, monkeypatch):
    """Where the description does not tell: static groups. What was reserved is given back."""
    folder = make_quantized(tmp_path, FORMATS["GPTQ"])
    changed(folder, g_idx=np.repeat([1, 0], 32).astype(np.int32))
    closed = []
    close = NativeDecoder.close
    monkeypatch.setattr(NativeDecoder, "close", lambda self: (closed.append(self), close(self)))
    with pytest.raises(UnsupportedModelError, match=f"act-order, as in '{UP_PROJ}'"):
        load(folder)
    assert len(closed) == 1


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"bits": 3}, "bits is 3"),
        ({"group_size": 96}, r"cannot divide \(64, 64, 128\) inputs into groups of 96"),
    ],
)
def test_what_it_cannot_hold_is_refused_by_name(overrides, message, tmp_path):
    """Bits and groups."""
    folder = make_quantized(tmp_path, Format("gptq"))
    describe(folder, Format("gptq", overrides=overrides))
    with pytest.raises(UnsupportedModelError, match=message):
        load(folder)


def test_an_odd_size_of_layers_is_left_to_transformers(tmp_path):
    """24 inputs: no multiple of the registers' 16."""
    shape = {"hidden_size": 24, "num_attention_heads": 3, "num_key_value_heads": 3, "head_dim": 16}
    folder = make_quantized(tmp_path, FORMATS["AWQ, one group"], **shape)
    with pytest.raises(UnsupportedModelError, match="24 is not a multiple of 16"):
        load(folder)


def test_damaged_tensors_are_refused(tmp_path):
    """Another shape, another type, an activation's scales, none at all."""
    folder = make_quantized(tmp_path, FORMATS["AWQ"])
    path = folder / "model.safetensors"
    whole = path.read_bytes()
    for parts, error, message in (
        (
            {"scales": np.ones((3, 128), np.float16)},
            BrokenModelError,
            r"scales' has shape \[3, 128",
        ),
        ({"qzeros": np.ones((2, 16), np.float32)}, UnsupportedModelError, "stored as F32"),
        ({"act.scales": np.ones(128, np.float16)}, UnsupportedModelError, "no place for"),
    ):
        with pytest.raises(error, match=message):
            load(changed(folder, **parts))
        path.write_bytes(whole)
    tensors = load_file(path)
    del tensors[f"{UP_PROJ}.qzeros"]
    save_file(tensors, path)
    with pytest.raises(UnsupportedModelError, match=f"no tensor '{UP_PROJ}.qzeros'"):
        load(folder)


def test_rounding_what_is_rounded_is_refused(tmp_path):
    """`weights=int8` for a checkpoint in 4 bits."""
    folder = make_quantized(tmp_path, FORMATS["AWQ"])
    with pytest.raises(UnsupportedModelError, match="awq 4 bit already; leave out weights=int8"):
        load(folder, options={"weights": "int8"})
