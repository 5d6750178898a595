"""The library's own sampling loop behind our contract: one text at a time, and always an end."""

from __future__ import annotations

import asyncio
import json
import sys
import threading
from collections.abc import Callable
from contextlib import aclosing
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from tests.helpers.neuron import NeuronHost
from tests.helpers.neuron_models import as_options, compile_model, release_device
from tgwui_k8s.contract import GenerationRequest, LoadRequest, ModelInfo, TokenDelta
from tgwui_k8s.demo.tiny import make_checkpoint
from tgwui_k8s.errors import StartupError, UnsupportedModelError
from tgwui_k8s.neuron import optimum_export
from tgwui_k8s.registry import get_loader
from tgwui_k8s.runtime.neuron.sample_backend import SampleBackend
from tgwui_k8s.runtime.neuron.sampling import SampleCall
from tgwui_k8s.sampling import SamplingParams

NEVER_ENDS = 511
SAMPLE = {"mode": "sample", "batch_size": 1, "n_positions": 64, "tp_degree": 2}


def load(model: Path, **options: Any) -> SampleBackend:
    request = LoadRequest(model_path=str(model), loader="Neuron", options=as_options(options))
    backend = get_loader("Neuron").load(request, lambda progress: None)
    assert isinstance(backend, SampleBackend)
    return backend


def request(prompt: list[int], num_tokens: int, *, n: int = 1, **params: Any) -> GenerationRequest:
    params.setdefault("temperature", 0.0)
    return GenerationRequest(
        request_id="r",
        prompt_token_ids=tuple(prompt),
        params=SamplingParams(max_tokens=num_tokens, **params),
        num_choices=n,
    )


async def collect(backend: SampleBackend, asked: GenerationRequest) -> list[TokenDelta]:
    return [delta async for deltas in backend.generate(asked) for delta in deltas]


def run(backend: SampleBackend, asked: GenerationRequest) -> list[TokenDelta]:
    async def whole() -> list[TokenDelta]:
        deltas = await collect(backend, asked)
        await backend.close()
        return deltas

    return asyncio.run(whole())


def tokens_of(deltas: list[TokenDelta], index: int = 0) -> list[int]:
    return [token for delta in deltas if delta.index == index for token in delta.token_ids]


def greedy(checkpoint: Path, prompt: list[int], num_tokens: int) -> list[int]:
    model = AutoModelForCausalLM.from_pretrained(checkpoint).float()
    ids = torch.tensor([prompt])
    answer = model.generate(
        ids, attention_mask=torch.ones_like(ids), max_new_tokens=num_tokens, do_sample=False
    )
    return answer[0, len(prompt) :].tolist()


@pytest.fixture(name="llama")
def _llama(tmp_path: Path, neuron: NeuronHost) -> Path:
    folder = make_checkpoint(tmp_path / "llama", "llama", eos_token_id=NEVER_ENDS)
    compile_model(get_loader("Neuron"), folder, **SAMPLE)
    return folder


def test_greedy_text_is_that_of_transformers(llama: Path) -> None:
    """First token, last token, reason and count."""
    deltas = run(load(llama), request([7, 8, 9], 10))

    assert tokens_of(deltas) == greedy(llama, [7, 8, 9], 10)
    assert [delta.finish_reason for delta in deltas] == [None] * 9 + ["length"]


def test_the_whole_context_can_be_used_and_not_more(llama: Path) -> None:
    """One position more would be a bare StopIteration of the library."""
    backend = load(llama)

    async def both() -> tuple[list[TokenDelta], list[TokenDelta]]:
        full = await collect(backend, request([7] * 56, 8))
        beyond = await collect(backend, request([7] * 56, 9))
        await backend.close()
        return full, beyond

    full, beyond = asyncio.run(both())
    assert len(tokens_of(full)) == 8
    assert [delta.error_code for delta in beyond] == ["context_length_exceeded"]


def test_stop_tokens_end_the_text_and_are_part_of_it(llama: Path) -> None:
    """With their reason and their name."""
    text = greedy(llama, [7, 8, 9], 10)
    deltas = run(load(llama), request([7, 8, 9], 10, stop_token_ids=(text[3],)))

    assert tokens_of(deltas) == text[: text.index(text[3]) + 1]
    assert (deltas[-1].finish_reason, deltas[-1].stop_token_id) == ("stop", text[3])


def test_choices_follow_one_another(llama: Path) -> None:
    """Each is drawn with a seed of its own, and equal seeds draw alike."""
    asked = request([7, 8, 9], 8, n=2, temperature=1.0, seed=5, ignore_eos=True)
    backend = load(llama)

    async def twice() -> tuple[list[TokenDelta], list[TokenDelta]]:
        first, second = await collect(backend, asked), await collect(backend, asked)
        await backend.close()
        return first, second

    first, second = asyncio.run(twice())
    assert first == second
    assert tokens_of(first, 0) != tokens_of(first, 1)


def test_what_the_loop_cannot_do_is_declared(llama: Path) -> None:
    """So that the API refuses it."""
    backend = load(llama)
    asyncio.run(backend.close())
    capabilities = backend.info.capabilities

    assert not capabilities.logprobs
    assert not capabilities.resume
    assert {"min_p", "repetition_penalty", "logit_bias"} <= set(capabilities.unsupported_params)
    assert not {"temperature", "top_p", "top_k", "seed"} & set(capabilities.unsupported_params)


def test_older_classes_know_top_k_alone(tmp_path: Path, neuron: NeuronHost) -> None:
    """They never end by themselves; their text is Transformers' still."""
    folder = make_checkpoint(tmp_path / "gpt2", "gpt2", eos_token_id=NEVER_ENDS)
    compile_model(get_loader("Neuron"), folder, **SAMPLE)
    backend = load(folder)

    deltas = run(backend, request([7, 8, 9], 8))

    assert tokens_of(deltas) == greedy(folder, [7, 8, 9], 8)
    assert {"temperature", "top_p"} <= set(backend.info.capabilities.unsupported_params)


def test_classes_that_cannot_be_saved_need_a_word(tmp_path: Path, neuron: NeuronHost) -> None:
    """GPT-J compiles at every start, or not at all."""
    folder = make_checkpoint(tmp_path / "gptj", "gptj", eos_token_id=NEVER_ENDS)

    with pytest.raises(UnsupportedModelError, match="--neuron-compile-on-start"):
        compile_model(get_loader("Neuron"), folder, **SAMPLE)
    with pytest.raises(StartupError, match="no compiled artifacts"):
        load(folder, **SAMPLE)
    release_device()
    deltas = run(load(folder, **SAMPLE, compile_on_start=True), request([7, 8, 9], 5))
    assert len(tokens_of(deltas)) == 5


class ScriptedModel:
    """contract of `SamplingModel`: what the library may do, at will."""

    ends_at_tokens = True
    lacking: tuple[str, ...] = ()

    def __init__(self, script: Callable[[SampleCall, Callable[[int], None]], None]) -> None:
        self.script = script
        self.threads: set[str] = set()
        self.closed = False

    def sample(self, call: SampleCall, on_token: Callable[[int], None]) -> None:
        if call.prompt != (0, 0):  # not the warm-up
            self.threads.add(threading.current_thread().name)
            self.script(call, on_token)

    def close(self) -> None:
        self.closed = True


INFO = ModelInfo(
    loader="Neuron",
    architecture="x",
    dtype="float32",
    device="neuron",
    max_model_len=64,
    vocab_size=512,
    eos_token_ids=(1,),
)


def endless(call: SampleCall, on_token: Callable[[int], None]) -> None:
    while not call.cancelled.is_set():
        on_token(7)


def test_a_client_that_leaves_ends_the_loop() -> None:
    """The next request need not wait for a text that nobody reads."""
    model = ScriptedModel(endless)
    backend = SampleBackend(model, INFO)

    async def leave() -> list[TokenDelta]:
        async with aclosing(backend.generate(request([3], 60))) as stream:
            await stream.__anext__()
        model.script = lambda call, on_token: on_token(9)
        deltas = await collect(backend, request([4], 1))
        await backend.close()
        return deltas

    assert tokens_of(asyncio.run(leave())) == [9]
    assert model.threads == {"neuron-sample"}
    assert model.closed


def test_a_choice_can_be_ended_by_itself() -> None:
    """Its text met a stop string; the stream still ends."""
    backend = SampleBackend(ScriptedModel(one_token), INFO)

    async def end() -> list[TokenDelta]:
        seen = []
        async for deltas in backend.generate(request([3], 8)):
            seen += deltas
            backend.abort_choice("r", 0)
        await backend.close()
        return seen

    assert [delta.finish_reason for delta in asyncio.run(end())] == [None, "abort"]


def one_token(call: SampleCall, on_token: Callable[[int], None]) -> None:
    on_token(7)
    wait(call)


def test_a_deadline_ends_the_loop() -> None:
    """With the code of the API."""
    backend = SampleBackend(ScriptedModel(lambda call, _: wait(call)), INFO)
    asked = GenerationRequest(
        request_id="r",
        prompt_token_ids=(3,),
        params=SamplingParams(max_tokens=8),
        timeout_seconds=0.01,
    )

    assert [delta.error_code for delta in run(backend, asked)] == ["deadline_exceeded"]


def wait(call: SampleCall) -> None:
    assert call.cancelled.wait(30)


def test_a_library_that_fails_ends_the_stream() -> None:
    """With its exception, which ends the engine: nothing on the device can be trusted."""

    def fail(call: SampleCall, on_token: Callable[[int], None]) -> None:
        on_token(7)
        raise RuntimeError("NRT_EXEC_UNIT_UNRECOVERABLE")

    backend = SampleBackend(ScriptedModel(fail), INFO)

    with pytest.raises(RuntimeError, match="UNRECOVERABLE"):
        asyncio.run(collect(backend, request([3], 8)))


# ------------------------------------------------------------------------------- optimum-neuron


@pytest.fixture(name="export")
def _export(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An export as optimum-neuron 0.4 writes it, and a double of its one class."""
    folder = make_checkpoint(tmp_path / "export", "llama", eos_token_id=NEVER_ENDS)
    described = {
        "_serialized_key": "NxDNeuronConfig",
        "neuronxcc_version": "2.21.33363.0+abc",
        "optimum_neuron_version": "0.4.5",
        "tp_degree": 2,
        "batch_size": 1,
        "sequence_length": 64,
        "torch_dtype": "bfloat16",
        "on_device_sampling": True,
    }
    (folder / "neuron_config.json").write_text(json.dumps(described))
    (folder / "model.pt").touch()
    versions = {"neuronx-cc": "2.21.33363.0", "optimum-neuron": "0.4.5"}
    monkeypatch.setattr(optimum_export, "current_versions", lambda: versions)
    monkeypatch.setenv("NEURON_RT_NUM_CORES", "2")
    package, module = ModuleType("optimum"), ModuleType("optimum.neuron")
    module.NeuronModelForCausalLM = ExportedModel  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "optimum", package)
    monkeypatch.setitem(sys.modules, "optimum.neuron", module)
    return folder


class ExportedModel:
    """optimum-neuron's class, as far as its `generate()` is documented: no streamer."""

    def __init__(self, model: Any) -> None:
        self._model = model

    @classmethod
    def from_pretrained(cls, folder: str) -> ExportedModel:
        return cls(AutoModelForCausalLM.from_pretrained(folder).float())

    def generate(
        self,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor,
        generation_config: Any,
        stopping_criteria: Any,
    ) -> torch.Tensor:
        assert input_ids.shape[1] + generation_config.max_new_tokens <= 64
        assert (generation_config.top_k or 1) <= 256
        return self._model.generate(
            input_ids,
            attention_mask=attention_mask,
            generation_config=generation_config,
            stopping_criteria=stopping_criteria,
        )


def test_an_export_of_optimum_is_recognised_and_runs(export: Path) -> None:
    """Its description is its manifest; its text is Transformers'."""
    backend = load(export)

    deltas = run(backend, request([7, 8, 9], 10))

    assert tokens_of(deltas) == greedy(export, [7, 8, 9], 10)
    assert backend.info.details["library"] == "optimum-neuron"
    assert backend.info.max_model_len == 64


def test_a_drawn_text_of_an_export_ends_too(export: Path) -> None:
    """With parameters that its sampler takes."""
    deltas = run(load(export), request([7, 8, 9], 6, temperature=0.8, top_p=0.9, ignore_eos=True))

    assert len(tokens_of(deltas)) == 6
    assert deltas[-1].finish_reason == "length"


@pytest.mark.parametrize(
    ("name", "change", "match"),
    [
        ("tp_degree", {"tp_degree": "1"}, "tp_degree is 1, compiled for 2"),
        ("amp", {"amp": "f32"}, "amp is f32, compiled for bf16"),
        ("n_positions", {"n_positions": "128"}, "n_positions is 128, compiled for 64"),
        ("compiler", {}, "version of neuronx-cc is none, compiled for 2.21.33363.0"),
        ("weights", {}, "has no weights"),
        ("model", {}, r"neither model\.pt nor"),
    ],
)
def test_an_export_that_does_not_fit_is_refused(
    export: Path,
    monkeypatch: pytest.MonkeyPatch,
    name: str,
    change: dict[str, str],
    match: str,
) -> None:
    """Before the library is imported, which would download or compile."""
    monkeypatch.setitem(sys.modules, "optimum.neuron", None)
    if name == "compiler":
        monkeypatch.setattr(optimum_export, "current_versions", dict)
    if name == "weights":
        (export / "model.safetensors").unlink()
    if name == "model":
        (export / "model.pt").unlink()

    with pytest.raises(StartupError, match=match):
        load(export, **change)


def test_the_library_can_be_chosen(export: Path) -> None:
    """The folder's own checkpoint runs with the other library, once compiled for it."""
    with pytest.raises(StartupError, match="no compiled artifacts"):
        load(export, library="transformers-neuronx", tp_degree=2)
