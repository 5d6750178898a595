"""Invariants 3 to 5: loading, compiling, saving."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.helpers.neuron import NeuronHost, write_versions
from tests.helpers.neuron_calls import continuous, make_model
from tgwui_k8s.demo.tiny import make_checkpoint

IDS = torch.tensor([[5, 6, 7]])

COMPILE_AND_SAVE = """
import sys
from tests.helpers.neuron_calls import continuous, make_model
model = make_model(sys.argv[1], **continuous(2))
model.cpu_compile()
model.save(sys.argv[2])
"""


def compiled(path: Path, folder: Path, **arguments: Any) -> Path:
    """Artifacts of a model, made without a device."""
    model = make_model(path, **arguments)
    model.cpu_compile()
    model.save(folder)
    return folder


def make_loaded(path: Path, folder: Path, **arguments: Any) -> Any:
    """A model on the device, from artifacts."""
    model = make_model(path, **arguments)
    model.load(folder)
    model.to_neuron()
    return model


@pytest.mark.usefixtures("neuron")
def test_nothing_runs_before_to_neuron(llama: Path) -> None:
    """Invariant 3: calls before it fail, also with graphs compiled on the CPU."""
    model = make_model(llama)
    model.cpu_compile()

    with pytest.raises(ValueError, match="Attempted to use an uninitialized parameter"):
        model.sample(IDS, 8)
    with pytest.raises(ValueError, match="Attempted to use an uninitialized parameter"):
        model.forward(IDS)


def test_load_looks_only_when_the_model_moves(
    llama: Path, neuron: NeuronHost, tmp_path: Path
) -> None:
    """Invariant 4: a wrong path is an error of `to_neuron()`, after the weights were read."""
    model = make_model(llama)
    model.load(tmp_path / "nowhere")

    with pytest.raises(FileNotFoundError, match=r"Did not find directory: .*nowhere"):
        model.to_neuron()

    assert neuron.count("weights_read") == 1
    assert neuron.count("compile") == 0


def test_a_missing_graph_is_never_compiled(llama: Path, neuron: NeuronHost, tmp_path: Path) -> None:
    """Invariant 4: one file less, and `to_neuron()` fails with the library's words."""
    folder = compiled(llama, tmp_path / "artifacts", n_positions=[32, 64])
    compiles = neuron.count("compile")
    next(iter(sorted(folder.iterdir()))).unlink()
    model = make_model(llama, n_positions=[32, 64])
    model.load(folder)

    message = "Could not find a matching NEFF for your HLO in this directory."
    with pytest.raises(FileNotFoundError, match=re.escape(message)):
        model.to_neuron()

    assert neuron.count("compile") == compiles


@pytest.mark.parametrize(
    ("arguments", "graphs"),
    [
        ({"n_positions": 64}, 2),
        ({"batch_size": [1, 2], "context_length_estimate": [8, 16, 32]}, 2 + 6),
        ({"context_length_estimate": 0}, 1),
    ],
)
def test_every_graph_is_one_file(
    llama: Path, neuron: NeuronHost, tmp_path: Path, arguments: dict[str, Any], graphs: int
) -> None:
    """Invariant 4: a flat folder, `<20 hex>.neff`, one for each bucket and batch size."""
    folder = compiled(llama, tmp_path / "artifacts", **arguments)

    names = [path.name for path in folder.iterdir()]
    assert len(names) == graphs == neuron.count("compile")
    assert all(re.fullmatch(r"[0-9a-f]{20}\.neff", name) for name in names)


def test_continuous_batching_prefills_one_prompt_at_a_time(
    llama: Path, neuron: NeuronHost, tmp_path: Path
) -> None:
    """Invariant 4: its context graphs are compiled for batch 1 alone."""
    shared = continuous(4, n_positions=[32, 64], context_length_estimate=[16, 32])

    assert len(list(compiled(llama, tmp_path / "artifacts", **shared).iterdir())) == 2 + 2
    assert neuron.count("compile", kind="context", batch_size=1) == 2
    assert neuron.count("compile", kind="decode", batch_size=4) == 2


@pytest.mark.usefixtures("neuron")
def test_saving_too_early_leaves_an_empty_folder(llama: Path, tmp_path: Path) -> None:
    """Invariant 5: so that a folder which exists proves nothing."""
    with pytest.raises(AttributeError, match="'NoneType' object has no attribute 'get_kernels'"):
        make_model(llama).save(tmp_path / "artifacts")

    assert list((tmp_path / "artifacts").iterdir()) == []


@pytest.mark.usefixtures("neuron")
def test_saving_over_a_file_is_refused(llama: Path, tmp_path: Path) -> None:
    """Invariant 5: FileExistsError; an existing folder is used again."""
    model = make_model(llama)
    model.to_neuron()
    (tmp_path / "file").write_text("")
    with pytest.raises(FileExistsError):
        model.save(tmp_path / "file")

    model.save(tmp_path)
    model.save(tmp_path)


def test_a_round_trip_compiles_nothing(llama: Path, neuron: NeuronHost, tmp_path: Path) -> None:
    """Invariant 5: what one process compiled, another loads, and writes the same text."""
    folder = tmp_path / "artifacts"
    subprocess.run(
        [sys.executable, "-c", COMPILE_AND_SAVE, str(llama), str(folder)],
        env=neuron.env(),
        cwd=Path(__file__).parents[3],
        check=True,
    )
    compiles = neuron.count("compile")

    model = make_model(llama, **continuous(2))
    model.load(folder)
    model.to_neuron()

    assert neuron.count("compile") == compiles == neuron.count("neff_loaded")
    assert neuron.events("to_neuron")[0]["loaded"] is True
    assert neuron.events("to_neuron")[0]["compiles"] == 0


@pytest.mark.parametrize(
    "changed",
    ["tp_degree", "batch_size", "n_positions", "context_length_estimate", "amp", "neuron_config"],
)
@pytest.mark.usefixtures("neuron")
def test_every_parameter_is_part_of_the_names(llama: Path, tmp_path: Path, changed: str) -> None:
    """Invariant 5: a change of any one of them misses."""
    from transformers_neuronx import GQA, NeuronConfig

    compiled(llama, tmp_path / "artifacts")
    values: dict[str, Any] = {
        "tp_degree": 1,
        "batch_size": 2,
        "n_positions": 32,
        "context_length_estimate": 16,
        "amp": "bf16",
        "neuron_config": NeuronConfig(group_query_attention=GQA.REPLICATED_HEADS),
    }
    model = make_model(llama, **{changed: values[changed]})
    model.load(tmp_path / "artifacts")

    with pytest.raises(FileNotFoundError, match="matching NEFF"):
        model.to_neuron()


@pytest.mark.parametrize(
    ("wide", "narrow"),
    [
        ({"context_length_estimate": [16, 32]}, {"context_length_estimate": [16]}),
        ({"n_positions": [32, 64]}, {"n_positions": [64], "context_length_estimate": [16, 32]}),
        ({"batch_size": [1, 2]}, {"batch_size": 1}),
    ],
)
@pytest.mark.usefixtures("neuron")
def test_fewer_graphs_miss_as_well(
    llama: Path, tmp_path: Path, wide: dict[str, Any], narrow: dict[str, Any]
) -> None:
    """Invariant 5: also where every graph that is needed was compiled, among others."""
    compiled(llama, tmp_path / "artifacts", **wide)

    with pytest.raises(FileNotFoundError, match="matching NEFF"):
        make_loaded(llama, tmp_path / "artifacts", **narrow)


@pytest.mark.parametrize("changed", [{"amp": "bf16"}, {"tp_degree": 1}])
@pytest.mark.usefixtures("neuron")
def test_older_classes_are_named_by_their_parameters_too(
    tmp_path: Path, changed: dict[str, Any]
) -> None:
    """Invariant 5: for a class whose configuration is Transformers' own."""
    path = make_checkpoint(tmp_path / "model", "gpt2", num_hidden_layers=1)
    model = make_model(path, "gpt2")
    model.cpu_compile()
    model.save(tmp_path / "artifacts")
    other = make_model(path, "gpt2", **changed)
    other.load(tmp_path / "artifacts")

    with pytest.raises(FileNotFoundError, match="matching NEFF"):
        other.to_neuron()


@pytest.mark.usefixtures("neuron")
def test_weights_are_no_part_of_the_names(llama: Path, tmp_path: Path) -> None:
    """Invariant 5: a fine-tune shares the artifacts, another shape does not."""
    compiled(llama, tmp_path / "artifacts")
    tuned = make_checkpoint(tmp_path / "tuned", "llama", num_hidden_layers=2, seed=7)
    deeper = make_checkpoint(tmp_path / "deeper", "llama", num_hidden_layers=3)

    model = make_model(tuned)
    model.load(tmp_path / "artifacts")
    model.to_neuron()
    model = make_model(deeper)
    model.load(tmp_path / "artifacts")
    with pytest.raises(FileNotFoundError, match="matching NEFF"):
        model.to_neuron()


def test_versions_of_the_library_miss_and_of_the_compiler_do_not(
    llama: Path, neuron: NeuronHost, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Invariants 4 and 5: the compiler's version is in no name, so the double writes it down."""
    compiled(llama, tmp_path / "artifacts")
    model = make_model(llama)
    model.load(tmp_path / "artifacts")

    monkeypatch.syspath_prepend(write_versions(tmp_path / "cc", {"neuronx-cc": "2.19.8089.0"}))
    model.to_neuron()
    assert (
        neuron.accept_violation("loaded a NEFF")
        == ["loaded a NEFF of neuronx-cc 2.20.9961.0 under 2.19.8089.0"] * 2
    )

    library = write_versions(tmp_path / "library", {"transformers-neuronx": "0.13.985"})
    monkeypatch.syspath_prepend(library)
    with pytest.raises(FileNotFoundError, match="matching NEFF"):
        make_loaded(llama, tmp_path / "artifacts")


def test_loading_too_late_has_no_effect(llama: Path, neuron: NeuronHost, tmp_path: Path) -> None:
    """Invariant 4: `load()` belongs before `to_neuron()`."""
    model = make_model(llama)
    model.to_neuron()
    model.load(tmp_path)

    assert neuron.accept_violation("load()") == ["load() after to_neuron() has no effect"]


@pytest.mark.usefixtures("neuron")
def test_the_compiler_may_fail(llama: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As it does on hosts with too little memory."""
    monkeypatch.setenv("NEURON_STANDIN_COMPILER_FAILS", "1")

    with pytest.raises(RuntimeError, match=r"Failed compilation with \['neuronx-cc'"):
        make_model(llama).to_neuron()


@pytest.mark.usefixtures("neuron")
def test_a_damaged_file_does_not_load(llama: Path, tmp_path: Path) -> None:
    """A truncated NEFF is an error of the runtime."""
    folder = compiled(llama, tmp_path / "artifacts")
    next(iter(folder.iterdir())).write_bytes(b"")

    with pytest.raises(RuntimeError, match="nrt_load status=2"):
        make_loaded(llama, folder)


@pytest.mark.usefixtures("neuron")
def test_sharded_weights_can_be_saved_with_the_graphs(llama: Path, tmp_path: Path) -> None:
    """Only with the embedding on the device; the folder is then a model by itself."""
    from transformers_neuronx import NeuronConfig

    model = make_model(llama)
    model.to_neuron()
    with pytest.raises(AssertionError, match="on_device_embedding"):
        model.save(tmp_path / "refused", sharded_weights=True)

    on_device = {"neuron_config": NeuronConfig(on_device_embedding=True)}
    model = make_model(llama, **on_device)
    model.to_neuron()
    model.save(tmp_path / "whole", sharded_weights=True)
    names = {path.name for path in (tmp_path / "whole").iterdir() if path.suffix != ".neff"}
    again = make_loaded(tmp_path / "whole", tmp_path / "whole", **on_device)

    assert names == {
        "config.json",
        "DecoderLMHead.safetensors",
        "decoder_layer_0.safetensors",
        "decoder_layer_1.safetensors",
    }
    assert again.sample(IDS, 16, top_k=1).equal(model.sample(IDS, 16, top_k=1))


@pytest.mark.usefixtures("neuron")
def test_unroll_must_divide_the_layers(llama: Path) -> None:
    """ValueError, when the model moves to the device."""
    model = make_model(llama, unroll=3)

    with pytest.raises(ValueError, match="unroll"):
        model.to_neuron()


def shard_pickle(folder: Path) -> None:
    """Spread pytorch_model.bin over one file per tensor, with an index."""
    weights = torch.load(folder / "pytorch_model.bin")
    (folder / "pytorch_model.bin").unlink()
    names = {key: f"part-{number}.bin" for number, key in enumerate(weights)}
    for key, name in names.items():
        torch.save({key: weights[key]}, folder / name)
    (folder / "pytorch_model.bin.index.json").write_text(json.dumps({"weight_map": names}))


@pytest.mark.parametrize("weight_format", ["sharded", "bin", "sharded bin", "split"])
@pytest.mark.usefixtures("neuron")
def test_every_format_of_weights_is_read(tmp_path: Path, weight_format: Any) -> None:
    """Shards, pickles, and what `save_pretrained_split` writes."""
    from transformers import AutoModelForCausalLM
    from transformers_neuronx.module import save_pretrained_split

    written = "bin" if weight_format.endswith("bin") else "sharded"
    path = make_checkpoint(tmp_path / "model", "llama", weight_format=written)
    if weight_format == "sharded bin":
        shard_pickle(path)
    if weight_format == "split":
        save_pretrained_split(AutoModelForCausalLM.from_pretrained(path), str(tmp_path / "split"))
        path = tmp_path / "split"
    plain = make_checkpoint(tmp_path / "plain", "llama")
    model, expected = make_model(path), make_model(plain)
    model.to_neuron()
    expected.to_neuron()

    assert model.sample(IDS, 12, top_k=1).equal(expected.sample(IDS, 12, top_k=1))
