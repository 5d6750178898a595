"""AWQ and GPTQ: the numbers are the formats' own, the text is the dequantized twin's."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file, save_file

from loaders.awq import AwqLoader
from loaders.gptq import GptqLoader
from tests.helpers.paged_driver import PagedDriver
from tests.helpers.quantized_checkpoints import (
    FORMATS,
    Format,
    describe,
    is_rounded,
    make_quantized,
    round_weight,
)
from tests.helpers.transformers_models import load_request, load_runner, random_tokens
from tgwui_k8s.demo.tiny import make_checkpoint
from tgwui_k8s.errors import BrokenModelError, StartupError, UnsupportedModelError
from tgwui_k8s.runtime import native_library
from tgwui_k8s.runtime.quantized.schemes import AwqScheme, GptqScheme
from tgwui_k8s.runtime.quantized.weight import quantize
from tgwui_k8s.runtime.transformers_runner import TransformersRunner
from tgwui_k8s.storage.infer import infer_loader

PROMPT = random_tokens(40, seed=1)


def load(folder: Path, **fields: Any) -> TransformersRunner:
    """With the loader that the folder's files call for."""
    name = infer_loader(folder).loader
    loader = {"AutoAWQ": AwqLoader, "AutoGPTQ": GptqLoader}[name]()
    return loader.load(load_request(folder, loader=name, **fields), lambda _: None)


@pytest.mark.parametrize("name", FORMATS)
def test_dequantized_weights_are_the_reference_formula_bit_for_bit(name: str) -> None:
    """What the scheme reads equals what the tool that wrote it would compute, in float16."""
    form = FORMATS[name]
    generator = np.random.default_rng(1)
    weight = generator.standard_normal((48, 128)).astype(np.float32)
    groups = None
    if form.act_order:
        groups = generator.permutation(np.arange(128) // form.group_size)
    rounded = round_weight(weight, bits=form.bits, group_size=form.group_size, groups=groups)
    parts = {f"layer.{part}": torch.from_numpy(t) for part, t in form.tensors(rounded).items()}
    scheme_class = AwqScheme if form.method == "awq" else GptqScheme
    scheme = scheme_class.from_config(Path("model"), form.description)
    read = scheme.read("layer", parts)
    np.testing.assert_array_equal(read.dequantize().numpy().T, rounded.weight)


@pytest.mark.parametrize("name", FORMATS)
def test_greedy_text_is_the_twins(name: str, tmp_path: Path) -> None:
    """A tiny model answers as the ordinary checkpoint of its dequantized weights does."""
    twin = tmp_path / "twin"
    folder = make_quantized(tmp_path / "model", FORMATS[name], twin=twin)
    runner = load(folder)
    plain = load_runner(twin)
    assert runner.info.weight_bytes < 0.6 * plain.info.weight_bytes
    assert runner.info.num_parameters == plain.info.num_parameters
    expected = PagedDriver(plain).generate(PROMPT, 24)
    assert PagedDriver(runner).generate(PROMPT, 24) == expected


def test_logits_are_the_twins_in_bfloat16_too(tmp_path: Path) -> None:
    """As far from the float32 logits as the twin in bfloat16, not further."""
    twin = tmp_path / "twin"
    folder = make_quantized(tmp_path / "model", FORMATS["AWQ"], twin=twin)
    exact = PagedDriver(load_runner(twin)).prefill(PROMPT)[1]
    theirs = PagedDriver(load_runner(twin, dtype="bfloat16")).prefill(PROMPT)[1]
    ours = PagedDriver(load(folder, dtype="bfloat16")).prefill(PROMPT)[1]
    assert np.abs(ours - exact).mean() < 1.25 * np.abs(theirs - exact).mean()


def test_a_layer_that_was_left_out_stays_as_it_is(tmp_path: Path) -> None:
    """`modules_to_not_convert`: what has an ordinary weight is an ordinary layer."""
    form = Format("awq", overrides={"modules_to_not_convert": ["down_proj"]})
    twin = tmp_path / "twin"
    folder = make_quantized(
        tmp_path / "model",
        form,
        twin=twin,
        rounds=lambda name: is_rounded(name) and "down_proj" not in name,
    )
    expected = PagedDriver(load_runner(twin)).generate(PROMPT, 12)
    assert PagedDriver(load(folder)).generate(PROMPT, 12) == expected


def test_biases_are_kept(tmp_path: Path) -> None:
    """Qwen 2 has them on quantized layers."""
    twin = tmp_path / "twin"
    folder = make_quantized(tmp_path / "model", FORMATS["GPTQ"], twin=twin, architecture="qwen2")
    expected = PagedDriver(load_runner(twin)).generate(PROMPT, 12)
    assert PagedDriver(load(folder)).generate(PROMPT, 12) == expected


def test_without_the_native_library_weights_are_expanded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """The same text from more memory, and the log says why."""
    folder = make_quantized(tmp_path / "model", FORMATS["GPTQ, act-order"])
    expected = PagedDriver(load(folder)).generate(PROMPT, 12)
    monkeypatch.setattr(native_library, "LIBRARIES", tmp_path)
    runner = load(folder)
    assert PagedDriver(runner).generate(PROMPT, 12) == expected
    assert "expanded to torch.float32: the native library was not built" in caplog.text
    assert runner.info.weight_bytes == 4 * runner.info.num_parameters


def test_the_info_names_the_quantization(tmp_path: Path) -> None:
    """Loader, method and bits, as the API reports them."""
    info = load(make_quantized(tmp_path / "model", FORMATS["GPTQ, 8 bits"])).info
    assert (info.loader, info.quantization) == ("AutoGPTQ", "gptq 8 bit")


# ------------------------------------------------------------------------- rounding while loading


@pytest.mark.parametrize("bits", [8, 4])
def test_ordinary_weights_can_be_rounded_at_load(tmp_path: Path, bits: int) -> None:
    """Less memory, and the text of the rounded weights; head and embeddings stay as they are."""
    folder = make_checkpoint(tmp_path / "model", "llama")
    twin = make_checkpoint(tmp_path / "twin", "llama")
    tensors = load_file(twin / "model.safetensors")
    for name in filter(is_rounded, tensors):
        weight = torch.from_numpy(tensors[name])
        rounded = quantize(weight, bits=bits, group_size=weight.shape[1])  # 64 or 128
        tensors[name] = rounded.dequantize().float().numpy()
    save_file(tensors, twin / "model.safetensors", metadata={"format": "pt"})
    plain, rounded = load_runner(twin), load_runner(folder, options={"weights": f"int{bits}"})
    assert rounded.info.quantization == f"rounded to {bits} bit"
    assert rounded.info.weight_bytes < 0.6 * plain.info.weight_bytes
    assert PagedDriver(rounded).generate(PROMPT, 12) == PagedDriver(plain).generate(PROMPT, 12)


@pytest.mark.parametrize("bits", [8, 4])
def test_rounding_errs_by_half_a_step(bits: int) -> None:
    """In every group, whatever its range; by a step at its ends; zero stays zero."""
    weight = torch.randn(20, 256, generator=torch.Generator().manual_seed(0))
    weight *= torch.logspace(-2, 1, 20)[:, None]
    weight[3] = weight[3].abs() + 0.5
    weight[:, 5] = 0
    rounded = quantize(weight, bits=bits, group_size=64)
    error = (rounded.dequantize().float() - weight).abs().unflatten(1, (-1, 64))
    steps = rounded.scales.float().unsqueeze(-1)
    assert (error <= 1.01 * steps).all()
    assert (error <= 0.51 * steps).float().mean() > 0.9
    assert (rounded.dequantize()[:, 5] == 0).all()


def test_an_unknown_type_of_weights_is_refused(tmp_path: Path) -> None:
    """The message names those that are known."""
    folder = make_checkpoint(tmp_path, "llama")
    with pytest.raises(StartupError, match="weights=int2 is not known; say int8 or int4"):
        load_runner(folder, options={"weights": "int2"})


# --------------------------------------------------------------------------------------- bad input


def damaged(folder: Path, **changes: Any) -> Path:
    """The checkpoint with one layer's tensors replaced, or dropped where None."""
    path = folder / "model.safetensors"
    tensors = load_file(path)
    for part, tensor in changes.items():
        name = f"model.layers.1.mlp.up_proj.{part}"
        tensors.pop(name, None)
        if tensor is not None:
            tensors[name] = tensor
    save_file(tensors, path, metadata={"format": "pt"})
    return folder


@pytest.mark.parametrize("method", ["AWQ", "GPTQ"])
@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"qzeros": None}, "'model.layers.1.mlp.up_proj.qzeros' is missing"),
        ({"scales": None}, "'model.layers.1.mlp.up_proj.scales' is missing"),
        ({"scales": np.ones((3, 128), np.float16)}, r"up_proj.scales' is \[3, 128\]"),
        ({"qzeros": np.ones((2, 16), np.float32)}, "up_proj.qzeros' has type torch.float32"),
        ({"qweight": np.ones((5,), np.int32)}, r"up_proj.qweight' is \[5\]"),
        ({"qweight": None}, "missing"),
    ],
)
def test_damaged_tensors_are_named(
    tmp_path: Path, method: str, changes: dict[str, Any], message: str
) -> None:
    """Before anything is served."""
    folder = damaged(make_quantized(tmp_path / "model", FORMATS[method]), **changes)
    with pytest.raises(StartupError, match=message):
        load(folder)


@pytest.mark.parametrize("method", ["AWQ", "GPTQ"])
def test_weights_of_another_model_are_refused(tmp_path: Path, method: str) -> None:
    """The layer and both sizes are named."""
    folder = make_quantized(tmp_path / "model", FORMATS[method])
    other = make_quantized(tmp_path / "other", FORMATS[method], hidden_size=128)
    (other / "model.safetensors").replace(folder / "model.safetensors")
    with pytest.raises(BrokenModelError, match=r"(?s)do not fit|does not fit config.json"):
        load(folder)


@pytest.mark.parametrize(
    ("method", "overrides", "message"),
    [
        ("awq", {"bits": 3}, "bits is 3; this loader runs 4"),
        ("awq", {"version": "gemv"}, "version is 'gemv'; this loader runs gemm"),
        ("awq", {"group_size": 20}, "group_size is 20; this loader runs multiples of 32"),
        ("awq", {"group_size": "many"}, "group_size is 'many'"),
        ("gptq", {"bits": 2}, "bits is 2; this loader runs 4 or 8"),
        ("gptq", {"checkpoint_format": "marlin"}, "checkpoint_format is 'marlin'"),
        ("gptq", {"is_marlin_format": True}, "checkpoint_format is 'marlin'"),
        ("gptq", {"group_size": 0}, "group_size is 0"),
        ("gptq", {"group_size": 96}, "do not divide into groups of 96"),
        ("gptq", {"bits": 8}, "does not fit 8 bits in groups of 32"),
    ],
)
def test_other_variants_are_refused_by_name(
    tmp_path: Path, method: str, overrides: dict[str, Any], message: str
) -> None:
    """Bits, groups and layouts that are not ours."""
    folder = make_quantized(tmp_path / "model", Format(method))
    describe(folder, Format(method, overrides=overrides))
    with pytest.raises(StartupError, match=message):
        load(folder)


def test_groups_of_different_sizes_are_refused(tmp_path: Path) -> None:
    """An act-order checkpoint whose `g_idx` is not a permutation."""
    folder = make_quantized(tmp_path / "model", FORMATS["GPTQ, act-order"])
    damaged(folder, g_idx=np.zeros(64, np.int32))
    with pytest.raises(UnsupportedModelError, match=r"up_proj.g_idx' makes groups"):
        load(folder)


def test_a_folder_without_a_description_is_refused(tmp_path: Path) -> None:
    """`--loader AutoAWQ` with an ordinary model."""
    folder = make_checkpoint(tmp_path, "llama")
    with pytest.raises(UnsupportedModelError, match="says nothing of a quantization"):
        AwqLoader().load(load_request(folder, loader="AutoAWQ"), lambda _: None)


def test_layers_that_the_model_does_not_have_are_refused(tmp_path: Path) -> None:
    """Experts, which Transformers fuses, say."""
    folder = make_quantized(
        tmp_path / "model",
        FORMATS["AWQ"],
        architecture="qwen3_moe",
        rounds=lambda name: is_rounded(name) and "experts" in name,
    )
    with pytest.raises(UnsupportedModelError, match="is quantized, but Qwen3MoeForCausalLM has no"):
        load(folder)


def test_scaled_activations_are_refused(tmp_path: Path) -> None:
    """AWQ divides some activations by scales of their own, which are not ours to ignore."""
    folder = make_quantized(tmp_path / "model", FORMATS["AWQ"])
    damaged(folder, **{"act.scales": np.ones(128, np.float16)})
    with pytest.raises(UnsupportedModelError, match=r"act.scales'"):
        load(folder)
