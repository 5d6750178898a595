"""From settings to what the engine needs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.helpers.model_zoo import PLAIN, Layout, quantized
from tgwui_k8s.contract import LoadRequest, default_token_budget
from tgwui_k8s.errors import (
    LoaderUnavailableError,
    ModelNotFoundError,
    UnsupportedModelError,
    UsageError,
)
from tgwui_k8s.load_request import engine_settings, load_request, served_names
from tgwui_k8s.settings import load_settings


@pytest.fixture(name="model_dir")
def model_dir_fixture(tmp_path: Path) -> Path:
    """A model directory with one plain model and one that no loader runs."""
    Layout("llama", "", PLAIN).write(tmp_path)
    Layout("exl2", "", quantized("exl2")).write(tmp_path)
    return tmp_path


def request_for(model_dir: Path, **flags: Any) -> LoadRequest:
    settings, _ = load_settings({"model_dir": str(model_dir), **flags}, {})
    return load_request(settings)


def test_model_is_found_and_its_loader_inferred(model_dir: Path) -> None:
    """`auto` reads the folder, and says that nobody asked for this loader."""
    request = request_for(model_dir, model="llama")

    assert str(model_dir / "llama") == request.model_path
    assert (request.loader, request.loader_is_inferred) == ("Transformers", True)


def test_loader_that_was_asked_for_wins(model_dir: Path) -> None:
    """`--loader` beats every sign in the folder, in any spelling."""
    request = request_for(model_dir, model="exl2", loader="auto-gptq")

    assert (request.loader, request.loader_is_inferred) == ("AutoGPTQ", False)


def test_every_setting_of_the_loader_is_passed_on(model_dir: Path) -> None:
    """Sizes as bytes, options as a mapping, the rest as it is."""
    request = request_for(
        model_dir,
        model="llama",
        dtype="float32",
        device="cpu",
        max_model_len="128",
        max_num_seqs="3",
        max_num_batched_tokens="64",
        kv_cache_memory="1MiB",
        memory_limit="1GiB",
        num_threads="2",
        trust_remote_code="true",
        prefetch="off",
        loader_option=["a=1", "b=2"],
    )

    assert (
        LoadRequest(
            model_path=str(model_dir / "llama"),
            loader="Transformers",
            loader_is_inferred=True,
            dtype="float32",
            device="cpu",
            max_model_len=128,
            max_num_seqs=3,
            max_num_batched_tokens=64,
            kv_cache_bytes=1024**2,
            memory_limit_bytes=1024**3,
            num_threads=2,
            trust_remote_code=True,
            prefetch="off",
            options={"a": "1", "b": "2"},
        )
        == request
    )


def test_what_cannot_be_loaded_is_an_error_before_anything_heavy(model_dir: Path) -> None:
    """Missing model, unsupported format, loader that is not shipped."""
    with pytest.raises(ModelNotFoundError):
        request_for(model_dir, model="missing")
    with pytest.raises(UnsupportedModelError, match="ExLlamaV2 is not shipped"):
        request_for(model_dir, model="exl2")
    with pytest.raises(LoaderUnavailableError, match="not shipped"):
        request_for(model_dir, model="llama", loader="ExLlamav2_HF")


def test_clients_stay_in_the_directory(model_dir: Path) -> None:
    """A name that came over HTTP is held to the rules for such names."""
    settings, _ = load_settings({"model_dir": str(model_dir), "model": str(model_dir)}, {})

    with pytest.raises(ModelNotFoundError, match="is not allowed"):
        load_request(settings, over_http=True)


def test_fake_loader_needs_no_files(model_dir: Path) -> None:
    """The fake takes any name, because it reads nothing."""
    request = request_for(model_dir, model="anything", loader="Fake")

    assert (request.model_path, request.loader) == ("anything", "fake")


def test_token_budget_waits_for_the_device() -> None:
    """Without a setting, the engine decides when it knows where the model runs."""
    default = engine_settings(load_settings({}, {})[0].engine)
    chosen = engine_settings(load_settings({"max_num_batched_tokens": 100}, {})[0].engine)

    assert (default.token_budget("cpu"), default.token_budget("cuda:0")) == (512, 8192)
    assert chosen.token_budget("cuda") == 100
    assert default_token_budget("cpu") == 512


@pytest.mark.parametrize(
    ("flags", "names"),
    [
        ({}, ("demo",)),
        ({"model": "/models/Llama-2-7b"}, ("Llama-2-7b",)),
        ({"model": "meta-llama/Llama-3"}, ("Llama-3",)),
        ({"served_model_name": ["a", "b"]}, ("a", "b")),
    ],
)
def test_clients_know_the_model_by(flags: dict[str, Any], names: tuple[str, ...]) -> None:
    """The folder's name, unless other names were given."""
    model = load_settings(flags, {})[0].model

    assert names == served_names(model, Path(model.model))


def test_flags_of_neuron_are_refused_with_another_loader(model_dir: Path) -> None:
    """A flag that nobody reads would be ignored: whoever sets it believes in 12 cores."""
    with pytest.raises(UnsupportedModelError, match=r"--tp-degree is for .*Neuron.*Transformers"):
        request_for(model_dir, model="llama", tp_degree="12")


def test_flags_of_neuron_become_its_options(model_dir: Path) -> None:
    """Under the names its loader knows; what was left alone is not passed on."""
    request = request_for(
        model_dir, model="llama", loader="Neuron", tp_degree="12", neuron_mode="sample"
    )

    assert request.options == {"tp_degree": "12", "mode": "sample"}


@pytest.mark.parametrize(
    ("flags", "options"),
    [
        ({"loader": "Transformers"}, {"tensor_parallel_size": "2"}),
        ({"loader": "vLLM"}, {"tensor_parallel_size": "2"}),
        ({"loader": "Neuron"}, {"tp_degree": "2"}),
        ({"loader": "Neuron", "tp_degree": "8"}, {"tp_degree": "8"}),
    ],
)
def test_one_flag_says_on_how_many_devices_a_model_lies(
    model_dir: Path, flags: dict[str, Any], options: dict[str, str]
) -> None:
    """Each loader that shares a model out gets it by its own name; Neuron's own flag wins."""
    request = request_for(model_dir, model="llama", tensor_parallel_size="2", **flags)

    assert request.options == options


def test_several_devices_are_refused_where_the_loader_takes_one(model_dir: Path) -> None:
    """Whoever asks for two GPUs would wonder about the second; one is no demand."""
    with pytest.raises(
        UnsupportedModelError, match=r"--tensor-parallel-size is for .*vLLM.*AutoAWQ"
    ):
        request_for(model_dir, model="llama", loader="AutoAWQ", tensor_parallel_size="2")
    request = request_for(model_dir, model="llama", loader="AutoAWQ", tensor_parallel_size="1")

    assert request.options == {}


@pytest.mark.parametrize(
    ("flags", "options"),
    [
        ({"load_in_8bit": True}, {"weights": "int8"}),
        ({"load_in_4bit": True}, {"weights": "int4"}),
        ({"gpu_memory_fraction": 0.5}, {"gpu_memory_fraction": "0.5"}),
        ({"load_in_8bit": True, "loader_option": ["weights=int4"]}, {"weights": "int4"}),
    ],
)
def test_flags_become_options_of_the_loader(
    model_dir: Path, flags: dict[str, Any], options: dict[str, str]
) -> None:
    """A loader without them refuses them by name; what --loader-option says wins."""
    assert request_for(model_dir, model="demo", **flags).options == options


def test_eight_bits_and_four_exclude_each_other() -> None:
    """Weights are rounded once."""
    with pytest.raises(UsageError, match="exclude each other"):
        load_settings({"load_in_8bit": True, "load_in_4bit": True}, {})


def test_adapters_may_come_later(model_dir: Path) -> None:
    """With a directory of adapters the loader must run them, with neither flag it need not."""
    assert request_for(model_dir, model="demo").adapters is None
    assert request_for(model_dir, model="demo", lora_dir="/loras").adapters == {}


def test_flags_of_llama_cpp_are_its_options(tmp_path: Path) -> None:
    """They reach the loader of a GGUF file under their own names, and no other loader."""
    Layout("m.gguf", "llama.cpp").write(tmp_path)
    flags = {"n_gpu_layers": 20, "no_mmap": True}

    options = request_for(tmp_path, model="m.gguf", **flags).options
    with pytest.raises(UnsupportedModelError, match=r"--n-gpu-layers is for the loader llama\.cpp"):
        request_for(tmp_path, model="demo", **flags)

    assert options == {"n_gpu_layers": "20", "no_mmap": "True"}


@pytest.mark.parametrize("name", ["../../etc", "/etc", "no-such-model"])
def test_a_client_names_a_model_of_the_directory_whatever_the_loader(
    model_dir: Path, name: str
) -> None:
    """The fake loader reads no files, but what it is given is shown and reported as the model."""
    settings, _ = load_settings({"model_dir": str(model_dir), "loader": "fake", "model": name}, {})

    assert load_request(settings).model_path == name
    with pytest.raises(ModelNotFoundError):
        load_request(settings, over_http=True)
