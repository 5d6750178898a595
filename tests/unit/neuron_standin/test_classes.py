"""The other classes with their narrower calls, and the adapter to Transformers."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM, MixtralConfig, MixtralForCausalLM

from tests.helpers.neuron import NeuronHost
from tests.helpers.neuron_calls import CLASSES, continuous, make_model
from tgwui_k8s.demo.tiny import make_checkpoint

NARROW = ("gpt2", "gpt_neox", "gptj", "opt", "bloom")
PROMPTS = ([5, 6, 7, 8, 9], [40, 41, 42])
LENGTH = 16


def greedy(path: Path, prompt: list[int], length: int, **fields: Any) -> list[int]:
    """What Transformers writes, without ever ending a text."""
    model = AutoModelForCausalLM.from_pretrained(path).eval()
    ids = torch.tensor([prompt])
    output = model.generate(
        ids,
        attention_mask=torch.ones_like(ids),
        max_length=length,
        min_length=length,
        do_sample=False,
        **fields,
    )
    return output[0].tolist()


@pytest.mark.parametrize("architecture", NARROW)
def test_the_older_classes_write_what_transformers_writes(
    neuron: NeuronHost, tmp_path: Path, architecture: str
) -> None:
    """Rows padded on the left, no EOS, always the whole length."""
    path = make_checkpoint(tmp_path / "model", architecture, num_hidden_layers=2)
    model = make_model(path, architecture, batch_size=2)
    model.to_neuron()
    streamed: list[torch.Tensor] = []

    class Streamer:
        def put(self, piece: torch.Tensor) -> None:
            streamed.append(piece)

        def end(self) -> None:
            streamed.append(torch.empty(2, 0))

    ids = torch.tensor([PROMPTS[0], [2, 2, *PROMPTS[1]]])
    text = model.sample(ids, LENGTH, start_ids=torch.tensor([0, 2]), top_k=1, streamer=Streamer())

    assert text[0].tolist() == greedy(path, PROMPTS[0], LENGTH)
    assert text[1, 2:].tolist() == greedy(path, PROMPTS[1], LENGTH - 2)
    assert len(streamed) == LENGTH - 5 + 1
    with pytest.raises(TypeError, match="temperature"):
        model.sample(ids, LENGTH, start_ids=torch.tensor([0, 2]), temperature=1.0)
    assert neuron.violations() == []


@pytest.mark.usefixtures("neuron")
def test_mixtral_samples_like_llama(tmp_path: Path) -> None:
    """All keyword arguments of `sample()`; no continuous batching."""
    torch.manual_seed(0)
    config = MixtralConfig(
        vocab_size=512,
        hidden_size=32,
        intermediate_size=32,
        num_hidden_layers=1,
        num_attention_heads=4,
        num_key_value_heads=2,
        num_local_experts=2,
        initializer_range=0.5,
    )
    MixtralForCausalLM(config).save_pretrained(tmp_path)
    model = make_model(tmp_path, "mixtral")
    model.to_neuron()

    text = model.sample(
        torch.tensor([PROMPTS[0]]), LENGTH, top_k=1, temperature=1.0, eos_token_override=-1
    )

    assert text[0].tolist() == greedy(tmp_path, PROMPTS[0], LENGTH, eos_token_id=511)


@pytest.mark.parametrize(("architecture", "saves"), [("gpt2", True), ("gptj", False)])
def test_not_every_class_can_save(
    neuron: NeuronHost, tmp_path: Path, architecture: str, saves: bool
) -> None:
    """GPT-J and GPT-NeoX have neither `save` nor `load`; the others load what they saved."""
    path = make_checkpoint(tmp_path / "model", architecture, num_hidden_layers=1)
    model = make_model(path, architecture)

    assert hasattr(model, "save") is hasattr(model, "load") is saves
    if saves:
        model.to_neuron()
        model.save(tmp_path / "artifacts")
        again = make_model(path, architecture)
        again.load(tmp_path / "artifacts")
        again.to_neuron()
        assert neuron.count("neff_loaded") == neuron.count("compile") == 2


def test_the_older_classes_check_positions_and_know_no_slots(
    neuron: NeuronHost, tmp_path: Path
) -> None:
    """ValueError beyond `max_position_embeddings`, which Llama does not check."""
    path = make_checkpoint(tmp_path / "gpt2", "gpt2", num_hidden_layers=1)
    llama = make_checkpoint(tmp_path / "llama", "llama", num_hidden_layers=1)

    make_model(llama, n_positions=512)
    make_model(path, "gpt2", n_positions=256)
    with pytest.raises(ValueError, match="max_position_embeddings"):
        make_model(path, "gpt2", n_positions=257)
    make_model(path, "gpt2", **continuous(2))
    assert len(neuron.accept_violation("has no continuous batching")) == 1


@pytest.mark.usefixtures("neuron")
def test_the_class_is_chosen_by_the_type_of_model(tmp_path: Path) -> None:
    """AssertionError for a type that no class is for."""
    from transformers_neuronx import NeuronAutoModelForCausalLM

    mistral = make_checkpoint(tmp_path / "mistral", "mistral", num_hidden_layers=1)
    qwen = make_checkpoint(tmp_path / "qwen", "qwen2", num_hidden_layers=1)

    model = NeuronAutoModelForCausalLM.from_pretrained(mistral, tp_degree=2)
    assert type(model).__name__ == "MistralForSampling"
    with pytest.raises(AssertionError, match="qwen2"):
        NeuronAutoModelForCausalLM.from_pretrained(qwen)


@pytest.mark.usefixtures("neuron")
def test_the_adapter_generates_like_transformers(llama: Path) -> None:
    """Rows padded on the left by their mask; each `generate()` begins at position 0."""
    from transformers_neuronx import HuggingFaceGenerationModelAdapter

    model = make_model(llama, batch_size=2)
    model.to_neuron()
    adapter = HuggingFaceGenerationModelAdapter(AutoConfig.from_pretrained(llama), model)
    ids = torch.tensor([PROMPTS[0], [2, 2, *PROMPTS[1]]])
    mask = torch.tensor([[1] * 5, [0, 0, 1, 1, 1]])

    for _ in range(2):
        text = adapter.generate(
            ids, attention_mask=mask, max_length=LENGTH, min_length=LENGTH, do_sample=False
        )
        assert text[0].tolist() == greedy(llama, PROMPTS[0], LENGTH)
        assert text[1, 2:].tolist() == greedy(llama, PROMPTS[1], LENGTH - 2)
    output = adapter(ids, cache_ids=torch.arange(5), start_ids=torch.tensor([0, 2]))
    assert output.logits.shape == (2, 1, 512)
    with pytest.raises(KeyError):
        adapter.generate(ids[:1], attention_mask=mask[:1], max_length=LENGTH)


@pytest.mark.parametrize(
    "name",
    [
        "base.NeuronModelBase",
        "bucket.find_bucket",
        "config.KVCacheQuantizationConfig",
        "constants.LAYOUT_BSH",
        "dtypes.to_torch_dtype",
        "fused_speculation.FusedSpeculativeDecoder",
        "generation_utils.HuggingFaceGenerationModelAdapter",
        "llama.model.FIDLlamaForSampling",
        "llama.model.LlamaForSampling",
        "module.save_pretrained_split",
        "sampling.filter_logits",
        "stopping_criteria.StoppingCriteriaList",
        "utils.batch_tokenize",
    ],
)
@pytest.mark.usefixtures("neuron")
def test_import_paths_in_use_resolve(name: str) -> None:
    """What programs import is there."""
    module, _, attribute = name.rpartition(".")

    assert hasattr(importlib.import_module(f"transformers_neuronx.{module}"), attribute)


@pytest.mark.usefixtures("neuron")
def test_versions_can_be_asked_for() -> None:
    """Those of SDK 2.25, the last one with this library."""
    import neuronxcc
    import torch_neuronx
    import transformers_neuronx

    assert transformers_neuronx.__version__ == "0.13.1216"
    assert neuronxcc.__version__ == "2.20.9961.0"
    assert torch_neuronx.__version__ == "2.7.0.2.9.9357"
    assert all(hasattr(transformers_neuronx, name) for name in CLASSES.values())
