"""What cannot run is refused before weights are read, with the parameter's name and a remedy."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest

from tgwui_k8s.contract import LoadRequest
from tgwui_k8s.errors import (
    BrokenModelError,
    NotEnoughMemoryError,
    StartupError,
    UnsupportedModelError,
)
from tgwui_k8s.neuron import manifest as manifests
from tgwui_k8s.neuron.examine import Examination, examine
from tgwui_k8s.neuron.manifest import MANIFEST, make_manifest, write_manifest
from tgwui_k8s.neuron.parameters import check_cores

CONFIG = {
    "model_type": "llama",
    "architectures": ["LlamaForCausalLM"],
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 512,
    "max_position_embeddings": 256,
    "dtype": "bfloat16",
}
VERSIONS = {"transformers-neuronx": "0.13.1216", "neuronx-cc": "2.20.9961.0"}
TWO_CORES = {"NEURON_RT_NUM_CORES": "2"}


@pytest.fixture(name="versions")
def _versions(monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    """Neuron software that seems to be installed; changes count."""
    versions = dict(VERSIONS)
    monkeypatch.setattr(manifests, "current_versions", lambda: dict(versions))
    return versions


@pytest.fixture(name="model")
def _model(tmp_path: Path, versions: dict[str, str]) -> Path:
    """A compiled model without weights: nothing here may read any."""
    folder = tmp_path / "tiny-neuron"
    (folder / "model").mkdir(parents=True)
    (folder / "tokenizer").mkdir()
    (folder / "model" / "config.json").write_text(json.dumps(CONFIG))
    artifacts = folder / "neuron_artifacts"
    artifacts.mkdir()
    (artifacts / "0123456789abcdef0123.neff").write_bytes(b"graph")
    parameters = look(folder, tp_degree="2", batch_size="4", n_positions="128").parameters
    write_manifest(make_manifest(parameters, CONFIG, artifacts), artifacts)
    return folder


def look(model: Path, environ: dict[str, str] | None = None, **options: str) -> Examination:
    request = LoadRequest(model_path=str(model), loader="Neuron", options=options)
    return examine(request, TWO_CORES if environ is None else environ, root=model / "no-root")


def test_a_compiled_model_needs_no_flags(model: Path) -> None:
    """The manifest says it all."""
    found = look(model)

    assert found.unusable is None
    check_cores(found.parameters, found.host)
    assert found.parameters.tp_degree == 2
    assert found.parameters.batch_size == 4
    assert found.parameters.n_positions == 128
    assert found.parameters.amp == "bf16"


@pytest.mark.parametrize(
    ("option", "value", "shown"),
    [
        ("tp_degree", "1", "tp_degree is 1, compiled for 2"),
        ("amp", "float32", "amp is f32, compiled for bf16"),
        ("batch_size", "8", "batch_size is 8, compiled for 4"),
        ("n_positions", "256", "n_positions is 256, compiled for 128"),
        ("context_buckets", "16,64", "context_buckets is 16,64, compiled for 128"),
        ("quantization", "s8", "quantization is s8, compiled for none"),
        ("gqa", "replicated-heads", "gqa is replicated-heads, compiled for "),
        ("attention_layout", "BSH", "attention_layout is BSH, compiled for HSB"),
        ("collectives_layout", "BSH", "collectives_layout is BSH, compiled for HSB"),
        ("fuse_qkv", "true", "fuse_qkv is True, compiled for False"),
    ],
)
def test_every_changed_parameter_is_named(model: Path, option: str, value: str, shown: str) -> None:
    """With what was compiled, and the command that compiles what is wanted."""
    unusable = look(model, **{option: value}).unusable

    assert unusable is not None
    assert shown in unusable
    assert "tgwui-k8s neuron compile" in unusable


def test_the_command_compiles_what_was_asked_for(model: Path) -> None:
    """It repeats every parameter, so that it can be pasted into a Job."""
    unusable = look(model, amp="f16", fuse_qkv="on", quantization="s8").unusable

    assert unusable is not None
    for words in (
        "--tp-degree 2",
        "--batch-size 4",
        "--n-positions 128",
        "--amp f16",
        "--neuron-quantization s8",
        "--loader-option fuse_qkv=True",
    ):
        assert words in unusable


def change_compiler(model: Path, versions: dict[str, str]) -> None:
    versions["neuronx-cc"] = "2.19.8089.0"


def remove_library(model: Path, versions: dict[str, str]) -> None:
    del versions["transformers-neuronx"]


def remove_graph(model: Path, versions: dict[str, str]) -> None:
    (model / "neuron_artifacts" / "0123456789abcdef0123.neff").unlink()


def truncate_graph(model: Path, versions: dict[str, str]) -> None:
    (model / "neuron_artifacts" / "0123456789abcdef0123.neff").write_bytes(b"gr")


def change_config(model: Path, versions: dict[str, str]) -> None:
    (model / "model" / "config.json").write_text(json.dumps({**CONFIG, "rope_theta": 5e5}))


def move_environment(model: Path, versions: dict[str, str]) -> None:
    path = model / "neuron_artifacts" / MANIFEST
    path.write_text(path.read_text().replace('"python_prefix": "', '"python_prefix": "/other'))


def remove_manifest(model: Path, versions: dict[str, str]) -> None:
    (model / "neuron_artifacts" / MANIFEST).unlink()


def remove_artifacts(model: Path, versions: dict[str, str]) -> None:
    remove_graph(model, versions)
    remove_manifest(model, versions)


@pytest.mark.parametrize(
    ("spoil", "shown"),
    [
        (
            change_compiler,
            "version of neuronx-cc is 2.19.8089.0, compiled for 2.20.9961.0",
        ),
        (remove_library, "version of transformers-neuronx is none, compiled for 0.13.1216"),
        (remove_graph, "graph 0123456789abcdef0123.neff is missing"),
        (truncate_graph, "graph 0123456789abcdef0123.neff is 2 bytes long"),
        (change_config, "config.json (hash)"),
        (move_environment, "path of the Python environment"),
        (remove_manifest, "no tgwui-k8s.json that says what they were compiled for"),
        (remove_artifacts, "there are no compiled artifacts in"),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_artifacts_that_do_not_match_are_never_tried(
    model: Path,
    versions: dict[str, str],
    spoil: Callable[[Path, dict[str, str]], None],
    shown: str,
) -> None:
    """Other software, missing or broken files, another model: each by its name."""
    spoil(model, versions)

    unusable = look(model, tp_degree="2").unusable

    assert unusable is not None
    assert shown in unusable
    assert "tgwui-k8s neuron compile" in unusable


def test_fine_tunes_may_differ_in_what_no_graph_sees(model: Path) -> None:
    """Names, types on disk and special tokens are not compiled in."""
    config = {**CONFIG, "_name_or_path": "x", "eos_token_id": [7], "torch_dtype": "float16"}
    (model / "model" / "config.json").write_text(json.dumps(config))

    assert look(model).unusable is None


def test_a_broken_manifest_is_named(model: Path) -> None:
    """Half a file is not the same as none."""
    path = model / "neuron_artifacts" / MANIFEST
    path.write_text(path.read_text()[:40])

    with pytest.raises(BrokenModelError, match=MANIFEST):
        look(model)


@pytest.mark.parametrize(
    ("environ", "match"),
    [
        ({"NEURON_RT_NUM_CORES": "1"}, r"tp_degree=2, but 1 are visible \(NEURON_RT_NUM_CORES=1\)"),
        ({"NEURON_RT_VISIBLE_CORES": "3"}, r"1 are visible \(NEURON_RT_VISIBLE_CORES=3\)"),
    ],
)
def test_too_few_cores_are_named(model: Path, environ: dict[str, str], match: str) -> None:
    """With where the number comes from."""
    found = look(model, environ)

    with pytest.raises(UnsupportedModelError, match=match):
        check_cores(found.parameters, found.host)


def test_a_topology_that_no_machine_has_is_refused(model: Path) -> None:
    """Before the runtime refuses it in other words."""
    found = look(model, {"NEURON_RT_NUM_CORES": "12"}, tp_degree="6")

    with pytest.raises(UnsupportedModelError, match="tp_degree=6 is a topology"):
        check_cores(found.parameters, found.host)


def test_too_little_memory_says_what_would_fit(model: Path) -> None:
    """The batch, the length and the degree are all ways out."""
    with pytest.raises(NotEnoughMemoryError) as caught:
        look(model, n_positions="1000000", batch_size="128")

    message = str(caught.value)
    assert "too little device memory" in message
    assert "n_positions=1000000" in message
    assert "what fits: n_positions up to" in message
    assert "batch_size up to" in message


@pytest.mark.parametrize(
    ("request_fields", "options", "match"),
    [
        ({}, {"tp": "2"}, "no option 'tp'"),
        ({}, {"amp": "fp8"}, "amp=fp8"),
        ({}, {"batch_size": "0"}, "batch_size=0"),
        ({}, {"context_buckets": "16,x"}, "context_buckets"),
        ({}, {"n_positions": "3"}, "n_positions=3 is too short"),
        ({}, {"context_buckets": "1"}, "must be at least 2"),
        ({}, {"context_buckets": "512"}, "512 is more than n_positions=128"),
        ({}, {"quantization": "s8", "amp": "f32"}, "quantization=s8 needs amp"),
        ({}, {"gqa": "shard-over-batch", "batch_size": "3"}, "no multiple of tp_degree=2"),
        ({}, {"mode": "sample"}, "batch_size=4: mode=sample"),
        ({"dtype": "float32"}, {"amp": "bf16"}, "amp=bf16 and dtype=f32"),
        ({"max_model_len": 256}, {"n_positions": "128"}, "max_model_len=256"),
        ({"device": "cpu"}, {}, "device=cpu"),
        ({"kv_cache_bytes": 1}, {}, "kv_cache_memory=1B"),
    ],
)
def test_contradictions_are_refused(
    model: Path, request_fields: dict[str, Any], options: dict[str, str], match: str
) -> None:
    """Every wrong value and pair of values, by name."""
    request = LoadRequest(model_path=str(model), loader="Neuron", options=options, **request_fields)

    with pytest.raises(StartupError, match=match):
        examine(request, TWO_CORES, root=model)


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"model_type": "qwen2"}, "this model's type is 'qwen2'"),
        ({"head_dim": 32}, "head_dim 32"),
        ({"hidden_size": None}, "no usable hidden_size"),
    ],
)
def test_models_that_the_library_does_not_run_are_refused(
    model: Path, changes: dict[str, Any], match: str
) -> None:
    """By what config.json says."""
    (model / "model" / "config.json").write_text(json.dumps({**CONFIG, **changes}))

    with pytest.raises(UnsupportedModelError, match=match):
        look(model)


def test_a_shorter_context_than_compiled_is_fine(model: Path) -> None:
    """The graphs hold more; less is served."""
    request = LoadRequest(model_path=str(model), loader="Neuron", max_model_len=64)

    found = examine(request, TWO_CORES, root=model)

    assert found.unusable is None
    assert found.parameters.n_positions == 128


def test_without_cores_to_count_the_degree_must_be_said(tmp_path: Path, model: Path) -> None:
    """Only where no artifacts say it."""
    (model / "neuron_artifacts" / MANIFEST).unlink()

    with pytest.raises(UnsupportedModelError, match="set --tp-degree"):
        look(model, {})
    assert look(model, {}, tp_degree="8").parameters.tp_degree == 8


def test_parameters_survive_the_way_through_a_file(model: Path) -> None:
    """What is written is what is read."""
    found = look(model)
    written = manifests.read_manifest(found.folder.artifacts)

    assert written is not None
    assert written.parameters == found.parameters
    assert msgspec.json.decode(msgspec.json.encode(written), type=type(written)) == written


LLAMA3 = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192,
}


@pytest.mark.parametrize(
    "config",
    [
        {"rope_parameters": {"rope_theta": 500000.0, "rope_type": "default"}},
        {"rope_parameters": {"rope_theta": 500000.0, **LLAMA3}, "rope_theta": 500000.0},
        {"rope_parameters": {"rope_theta": 10000.0, **LLAMA3}, "rope_scaling": {"type": "linear"}},
    ],
)
def test_rope_that_the_old_transformers_would_not_see_is_refused(
    model: Path, config: dict[str, Any]
) -> None:
    """The message has the lines to add, and with them the model is taken."""
    path = model / "model" / "config.json"
    path.write_text(json.dumps(CONFIG | config))

    with pytest.raises(UnsupportedModelError, match="rope_parameters") as caught:
        look(model)

    added = json.loads("{" + str(caught.value).partition("Add to it: ")[2] + "}")
    path.write_text(json.dumps(CONFIG | config | added))
    look(model)


@pytest.mark.parametrize(
    "config",
    [
        {"rope_theta": 500000.0, "rope_scaling": LLAMA3},
        {"rope_parameters": {"rope_theta": 10000.0, "rope_type": "default"}},
        {"rope_parameters": {"rope_theta": 5.0, **LLAMA3}, "rope_theta": 5, "rope_scaling": LLAMA3},
    ],
)
def test_rope_that_it_sees_is_fine(model: Path, config: dict[str, Any]) -> None:
    """Old files, default ones, and files that say it twice."""
    (model / "model" / "config.json").write_text(json.dumps(CONFIG | config))

    look(model)
