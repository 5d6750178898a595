"""One deliberate mistake at a time in the Neuron loader: the stand-in, or the text, shows each.

What would pass here unseen would pass on hardware too, and give wrong text or take every core.
The mistakes are numbered by the rule of the library that they break; every rule has one.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from tests.helpers.neuron import NeuronHost, write_versions
from tests.helpers.neuron_mistakes import MISTAKES, RULES
from tests.helpers.neuron_models import TINY, as_options, compile_model
from tgwui_k8s.contract import GenerationRequest, LoadRequest, ModelRunner
from tgwui_k8s.demo.tiny import make_checkpoint
from tgwui_k8s.engine.core import EngineCore
from tgwui_k8s.engine.messages import EngineSettings
from tgwui_k8s.neuron import examine as examination
from tgwui_k8s.registry import get_loader
from tgwui_k8s.runtime.neuron import transformers_neuronx as adapter
from tgwui_k8s.runtime.neuron.sample_backend import SampleBackend
from tgwui_k8s.sampling import SamplingParams

NEVER_ENDS = 511
PROMPTS = ([7, 8, 9], [7], [40] * 20, [5, 6])
SAMPLE = {**TINY, "mode": "sample", "batch_size": 1, "context_buckets": "16,32"}


@pytest.fixture(scope="module", name="model")
def _model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models") / "tiny-neuron"
    return make_checkpoint(folder, "llama", eos_token_id=NEVER_ENDS)


@pytest.fixture(name="artifacts")
def _artifacts(model: Path, tmp_path: Path, neuron: NeuronHost) -> Iterator[Path]:
    """Compiled without any mistake; what the stand-in sees later is accepted at the end."""
    folder = tmp_path / "artifacts"
    compile_model(get_loader("Neuron"), model, **TINY, artifacts=folder)
    assert neuron.violations() == []
    yield folder
    neuron.accept_violation("")


def load(model: Path, **options: Any) -> Any:
    request = LoadRequest(model_path=str(model), loader="Neuron", options=as_options(options))
    return get_loader("Neuron").load(request, lambda progress: None)


def texts(runner: ModelRunner) -> list[list[int]]:
    """Four requests that come one step after the other; greedy."""
    core = EngineCore(runner, EngineSettings(max_num_seqs=8, max_waiting_requests=8))
    tokens: list[list[int]] = [[] for _ in PROMPTS]
    waiting = list(enumerate(PROMPTS))
    while waiting or core.has_work:
        if waiting:
            number, prompt = waiting.pop(0)
            params = SamplingParams(max_tokens=6, temperature=0.0, ignore_eos=True)
            core.add_request(
                GenerationRequest(
                    request_id=str(number), prompt_token_ids=tuple(prompt), params=params
                )
            )
        for output in core.step():
            for delta in output.deltas:
                tokens[int(output.request_id)].extend(delta.token_ids)
    return tokens


def sampled(backend: SampleBackend) -> list[list[int]]:
    """Greedy, drawn, and too long for the buckets, one after the other; -1 where refused."""
    asked = [
        ([7, 8, 9], SamplingParams(max_tokens=6, temperature=0.0, ignore_eos=True)),
        ([5, 6], SamplingParams(max_tokens=6, temperature=1.0, seed=3, ignore_eos=True)),
        ([40] * 40, SamplingParams(max_tokens=6, temperature=0.0, ignore_eos=True)),
    ]

    async def collect() -> list[list[int]]:
        answers = []
        for number, (prompt, params) in enumerate(asked):
            request = GenerationRequest(
                request_id=str(number), prompt_token_ids=tuple(prompt), params=params
            )
            deltas = [delta async for some in backend.generate(request) for delta in some]
            answers.append([token for delta in deltas for token in delta.token_ids or (-1,)])
        await backend.close()
        return answers

    return asyncio.run(collect())


def test_every_rule_of_the_library_has_a_mistake() -> None:
    """A rule without one could be dropped from the stand-in, and no test would notice."""
    assert {case.rule for case in MISTAKES.values()} == RULES.keys()


def test_without_a_mistake_nothing_is_seen(
    model: Path, artifacts: Path, neuron: NeuronHost, tmp_path: Path
) -> None:
    """Otherwise the tests below would show nothing."""
    compile_model(get_loader("Neuron"), model, **SAMPLE, artifacts=tmp_path / "sample")
    compiles = neuron.count("compile")

    assert [len(text) for text in texts(load(model, artifacts=artifacts))] == [6] * 4
    neuron.restart()
    answers = sampled(load(model, artifacts=tmp_path / "sample"))
    assert [len(text) for text in answers] == [6, 6, 1]
    assert neuron.violations() == []
    assert neuron.count("compile") == compiles


@pytest.mark.parametrize("name", MISTAKES)
def test_a_mistake_is_seen(
    name: str,
    model: Path,
    artifacts: Path,
    neuron: NeuronHost,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """As an error, as a violation, as a compile, or in the text."""
    case = MISTAKES[name]
    read: Callable[[Any], list[list[int]]] = texts
    if case.in_sample:
        read, artifacts = sampled, tmp_path / "sample"
        compile_model(get_loader("Neuron"), model, **SAMPLE, artifacts=artifacts)
    right = read(load(model, artifacts=artifacts))
    neuron.restart()
    compiles = neuron.count("compile")
    case.mistake(monkeypatch)
    wrong: list[list[int]] | None = None

    with suppress(Exception):
        wrong = read(load(model, artifacts=artifacts))

    assert wrong != right or neuron.violations() or neuron.count("compile") > compiles


def test_other_software_unseen_by_the_manifest_is_seen(
    model: Path,
    artifacts: Path,
    neuron: NeuronHost,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A loader that did not compare would load graphs of another compiler."""
    monkeypatch.syspath_prepend(write_versions(tmp_path / "other", {"neuronx-cc": "2.19.8089.0"}))
    monkeypatch.setattr(examination, "why_unusable", lambda *arguments: None)

    load(model, artifacts=artifacts)

    assert any("2.20.9961.0" in message for message in neuron.violations())


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("temperature", 0.0),
        ("temperature", 1),
        ("top_k", 0),
        ("top_p", 0.0),
        ("top_p", 1),
        ("seed", None),
    ],
)
def test_wrong_types_end_in_an_error_and_not_in_silence(
    field: str,
    value: Any,
    model: Path,
    artifacts: Path,
    neuron: NeuronHost,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Had the sampling mode not cast them: every stream still ends."""
    compile_model(get_loader("Neuron"), model, **SAMPLE, artifacts=artifacts)
    backend = load(model, artifacts=artifacts)
    make = vars(adapter.SampleCall)["make"].__func__

    def careless(cls: Any, *arguments: Any, **keywords: Any) -> Any:
        call = make(cls, *arguments, **keywords)
        object.__setattr__(call, field, value)
        return call

    monkeypatch.setattr(adapter.SampleCall, "make", classmethod(careless))
    params = SamplingParams(max_tokens=4, temperature=0.7, top_k=5, top_p=0.9)
    request = GenerationRequest(request_id="r", prompt_token_ids=(7, 8), params=params)

    async def collect() -> list[Any]:
        return [deltas async for deltas in backend.generate(request)]

    with pytest.raises((ValueError, TypeError, RuntimeError)):
        asyncio.run(collect())
