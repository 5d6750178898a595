"""Invariants 1 and 2: what a model may be made of, and that making it touches nothing."""

from __future__ import annotations

import re
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.helpers.neuron import NeuronHost
from tests.helpers.neuron_calls import continuous, make_model
from tgwui_k8s.demo.tiny import make_checkpoint

pytestmark = pytest.mark.usefixtures("neuron")


def test_unknown_keyword_arguments_have_no_effect_and_are_written_down(
    llama: Path, neuron: NeuronHost
) -> None:
    """Invariant 1: the library swallows typing mistakes; the double fails the test for them."""
    make_model(llama, dtype="bf16", max_length=32)

    assert neuron.accept_violation("LlamaForSampling: keyword argument") == [
        "LlamaForSampling: keyword argument 'dtype' has no effect",
        "LlamaForSampling: keyword argument 'max_length' has no effect",
    ]


def test_arguments_after_the_configuration_are_keywords(llama: Path) -> None:
    """Invariant 1: a second positional argument is refused."""
    from transformers_neuronx import LlamaForSampling

    with pytest.raises(TypeError, match="positional"):
        LlamaForSampling.from_pretrained(llama, 64)


@pytest.mark.parametrize(
    ("amp", "error", "message"),
    [
        ("fp16", KeyError, "fp16"),
        ("float16", KeyError, "float16"),
        (torch.float16, TypeError, "argument of type 'torch.dtype' is not "),
        (None, TypeError, "argument of type 'NoneType' is not "),
    ],
)
def test_amp_has_three_names(llama: Path, amp: Any, error: type[Exception], message: str) -> None:
    """Invariant 1: f32, f16 and bf16, never torch's types or their names."""
    for name in ("f32", "f16", "bf16"):
        make_model(llama, amp=name)

    with pytest.raises(error, match=message):
        make_model(llama, amp=amp)


def test_batch_size_is_an_int_or_a_list(llama: Path) -> None:
    """Invariant 1: anything else is refused; a list is sorted."""
    assert make_model(llama, batch_size=[4, 1]).batch_sizes == [1, 4]

    with pytest.raises(TypeError, match="batch_size must be list of ints or int type"):
        make_model(llama, batch_size="2")


@pytest.mark.parametrize(
    ("n_positions", "estimate", "token_buckets", "context_buckets"),
    [
        (300, None, [128, 256, 300], [64, 128, 150]),
        (64, None, [64], [32]),
        (2048, None, [128, 256, 512, 1024, 2048], [64, 128, 256, 512, 1024]),
        ([128, 64], [64, 16], [64, 128], [16, 64]),
        (64, 48, [64], [48]),
        (64, 0, [64], []),
    ],
)
def test_buckets_follow_from_the_lengths(
    llama: Path,
    n_positions: Any,
    estimate: Any,
    token_buckets: list[int],
    context_buckets: list[int],
) -> None:
    """Invariant 1: token buckets double from 128, context buckets are half of them."""
    model = make_model(llama, n_positions=n_positions, context_length_estimate=estimate)

    assert model.token_buckets == token_buckets
    assert model.context_buckets == context_buckets


def test_an_empty_list_of_context_buckets_is_refused(llama: Path) -> None:
    """Invariant 1: 0 means none, [] is a mistake."""
    with pytest.raises(ValueError, match="context_length_estimate"):
        make_model(llama, context_length_estimate=[])


def test_context_cannot_be_longer_than_the_cache(llama: Path) -> None:
    """Invariant 1: with the library's words."""
    message = "Max context_length_estimate 64 cannot be more than max n_positions 32."
    with pytest.raises(AssertionError, match=re.escape(message)):
        make_model(llama, n_positions=32, context_length_estimate=64)


@pytest.mark.parametrize("batch_size", [4, None])
def test_continuous_batching_wants_equal_batch_sizes(llama: Path, batch_size: int | None) -> None:
    """Invariant 1: the batch size must be given, and equal that of the shared caches."""
    arguments = continuous(2)
    arguments.pop("batch_size")
    if batch_size is not None:
        arguments["batch_size"] = batch_size

    message = f"invalid batch_size_for_shared_caches (2), {batch_size} is expected"
    with pytest.raises(AssertionError, match=re.escape(message)):
        make_model(llama, **arguments)


def test_configurations_refuse_what_they_do_not_know() -> None:
    """Invariant 1: unlike models, NeuronConfig and its parts assert."""
    from transformers_neuronx import ContinuousBatchingConfig, NeuronConfig

    message = "Unexpected NeuronConfig keyword arguments: {'fuse_kqv': True}"
    with pytest.raises(AssertionError, match=re.escape(message)):
        NeuronConfig(fuse_kqv=True)
    with pytest.raises(AssertionError, match="padding_side"):
        NeuronConfig(padding_side="middle")
    with pytest.raises(AssertionError, match="cast_logits_dtype"):
        NeuronConfig(cast_logits_dtype="bf16")
    with pytest.raises(AssertionError, match="ContinuousBatchingConfig"):
        ContinuousBatchingConfig(max_num_seqs=2, block_size=16)
    with pytest.raises(AssertionError, match="optimized_paged_attention"):
        ContinuousBatchingConfig(max_num_seqs=2, enable_chunked_prefill=True)
    with pytest.raises(KeyError):
        ContinuousBatchingConfig(max_model_len=64)
    shared = ContinuousBatchingConfig(max_num_seqs=2)
    assert NeuronConfig(continuous_batching=shared).padding_side == "right"


def test_quantization_must_return_to_the_type_of_amp(llama: Path, neuron: NeuronHost) -> None:
    """The type that weights are dequantized to must equal `amp`."""
    from transformers_neuronx import NeuronConfig, QuantizationConfig

    config = NeuronConfig(quant=QuantizationConfig(quant_dtype="s8", dequant_dtype="f16"))
    make_model(llama, amp="bf16", neuron_config=config)

    assert neuron.accept_violation("dequant_dtype") == ["dequant_dtype f16 differs from amp bf16"]


def test_heads_over_the_batch_need_a_batch_that_divides(llama: Path, neuron: NeuronHost) -> None:
    """The library warns and falls back to replication; the double fails the test."""
    from transformers_neuronx import GQA, NeuronConfig

    config = NeuronConfig(group_query_attention=GQA.SHARD_OVER_BATCH)
    make_model(llama, batch_size=4, neuron_config=config)
    assert neuron.violations() == []

    make_model(llama, batch_size=3, neuron_config=config)
    assert len(neuron.accept_violation("does not divide by tp_degree 2")) == 1


def test_mistral_knows_no_prefix(tmp_path: Path, neuron: NeuronHost) -> None:
    """`prefixed_length` is Llama's alone."""
    path = make_checkpoint(tmp_path / "mistral", "mistral", num_hidden_layers=1)

    make_model(path, "mistral", prefixed_length=4)

    assert neuron.accept_violation("Mistral") == [
        "MistralForSampling: keyword argument 'prefixed_length' has no effect"
    ]


def test_only_known_rope_scaling_is_accepted(llama: Path, tmp_path: Path) -> None:
    """Any type but default and llama3 is refused."""
    from transformers import LlamaConfig as HfLlamaConfig
    from transformers_neuronx import LlamaForSampling

    config = HfLlamaConfig(rope_parameters={"rope_type": "linear", "factor": 2.0})

    with pytest.raises(ValueError, match="linear"):
        LlamaForSampling(config, tp_degree=2)


def test_making_a_model_touches_no_device(llama: Path, neuron: NeuronHost) -> None:
    """Invariant 2: no core is taken and no weight is read."""
    model = make_model(llama, tp_degree=3)

    assert [entry["event"] for entry in neuron.events()] == ["construct"]
    assert type(model.config).__module__ == "transformers_neuronx.llama.config"
    assert not hasattr(model.config, "pad_token_id")
    for absent in ("device", "dtype", "generate"):
        assert not hasattr(model, absent)


def test_missing_folders_and_weights_are_told_apart(llama: Path, tmp_path: Path) -> None:
    """Invariant 2: OSError for a missing path, FileNotFoundError for a folder without weights."""
    with pytest.raises(OSError, match="nowhere"):
        make_model(tmp_path / "nowhere")

    shutil.copy(llama / "config.json", tmp_path)
    message = "Can not find model.safetensors or pytorch_model.bin in"
    with pytest.raises(FileNotFoundError, match=message):
        make_model(tmp_path)
