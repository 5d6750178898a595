"""One deliberate mistake at a time in the Neuron loader: the stand-in, or the text, shows each.

What would pass here unseen would pass on hardware too, and give wrong text or take every core.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import torch

import loaders.neuron as loader_module
from tests.helpers.neuron import NeuronHost, write_versions
from tests.helpers.neuron_models import TINY, as_options, compile_model
from tgwui_k8s.contract import GenerationRequest, LoadRequest, ModelRunner
from tgwui_k8s.demo.tiny import make_checkpoint
from tgwui_k8s.engine import scheduler
from tgwui_k8s.engine.core import EngineCore
from tgwui_k8s.engine.messages import EngineSettings
from tgwui_k8s.neuron import examine as examination
from tgwui_k8s.registry import get_loader
from tgwui_k8s.runtime.neuron import transformers_neuronx as adapter
from tgwui_k8s.runtime.neuron.slot_runner import SlotRunner
from tgwui_k8s.runtime.neuron.transformers_neuronx import TransformersNeuronx
from tgwui_k8s.sampling import SamplingParams

Mistake = Callable[[pytest.MonkeyPatch], None]

NEVER_ENDS = 511
PROMPTS = ([7, 8, 9], [7], [40] * 20, [5, 6])
SAMPLE = {**TINY, "mode": "sample", "batch_size": 1}


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


class Wrapped:
    """The library's model, its calls changed by `change` on their way."""

    def __init__(self, model: Any, change: Callable[..., tuple[Any, ...]]) -> None:
        self._model = model
        self._change = change

    def __getattr__(self, name: str) -> Any:
        return getattr(self._model, name)

    def __call__(self, ids: Any, *, cache_ids: Any, start_ids: Any) -> Any:
        arguments, keywords = self._change(ids, cache_ids, start_ids)
        return self._model(*arguments, **keywords)


def calling(change: Callable[..., tuple[Any, ...]]) -> Mistake:
    """A mistake in what `forward()` is given."""

    def make(patch: pytest.MonkeyPatch) -> None:
        build = TransformersNeuronx.__init__

        def init(self: Any, model: Any, *others: Any) -> None:
            build(self, Wrapped(model, change), *others)

        patch.setattr(TransformersNeuronx, "__init__", init)

    return make


def without_slots(ids: Any, cache_ids: Any, start_ids: Any) -> tuple[Any, ...]:
    return (ids,), {"cache_ids": cache_ids}


def without_positions(ids: Any, cache_ids: Any, start_ids: Any) -> tuple[Any, ...]:
    return (ids,), {"start_ids": start_ids}


def flat_positions(ids: Any, cache_ids: Any, start_ids: Any) -> tuple[Any, ...]:
    return (ids,), {"cache_ids": cache_ids.flatten(), "start_ids": start_ids}


def position_too_far(ids: Any, cache_ids: Any, start_ids: Any) -> tuple[Any, ...]:
    shift = 1 if ids.shape[1] == 1 else 0
    return (ids,), {"cache_ids": cache_ids + shift, "start_ids": start_ids}


def position_again(ids: Any, cache_ids: Any, start_ids: Any) -> tuple[Any, ...]:
    shift = 1 if ids.shape[1] == 1 else 0
    return (ids,), {"cache_ids": cache_ids - shift, "start_ids": start_ids}


def one_row_less(ids: Any, cache_ids: Any, start_ids: Any) -> tuple[Any, ...]:
    if ids.shape[1] > 1 or len(ids) == 1:
        return (ids,), {"cache_ids": cache_ids, "start_ids": start_ids}
    kept = torch.arange(len(ids) - 1)
    return (ids[kept],), {"cache_ids": cache_ids[kept], "start_ids": start_ids[kept]}


def short_prompt_as_decode(ids: Any, cache_ids: Any, start_ids: Any) -> tuple[Any, ...]:
    width = int(cache_ids.max()) + 1 if ids.shape[1] > 1 else 1
    return (ids[:, :width],), {"cache_ids": cache_ids[:, :width], "start_ids": start_ids}


def pad_seen(ids: Any, cache_ids: Any, start_ids: Any) -> tuple[Any, ...]:
    positions = torch.arange(ids.shape[1], dtype=cache_ids.dtype)[None]
    cache_ids = positions if ids.shape[1] > 1 else cache_ids
    return (ids,), {"cache_ids": cache_ids, "start_ids": start_ids}


def wrong_slot(ids: Any, cache_ids: Any, start_ids: Any) -> tuple[Any, ...]:
    return (ids,), {"cache_ids": cache_ids, "start_ids": start_ids + 1}


def unknown_keyword(ids: Any, cache_ids: Any, start_ids: Any) -> tuple[Any, ...]:
    return (ids,), {"cache_ids": cache_ids, "start_ids": start_ids, "seq_ids": start_ids}


def rows_out_of_order(patch: pytest.MonkeyPatch) -> None:
    execute = SlotRunner.execute
    patch.setattr(SlotRunner, "execute", lambda self, batch: execute(self, batch)[::-1])


def uneven_decodes(patch: pytest.MonkeyPatch) -> None:
    running = scheduler.Scheduler._schedule_running

    def last_two(self: Any, schedule: Any, sequences: list[Any]) -> None:
        running(self, schedule, sequences[-2:])

    patch.setattr(scheduler.Scheduler, "_schedule_running", last_two)


def all_cores(patch: pytest.MonkeyPatch) -> None:
    patch.delenv("NEURON_RT_NUM_CORES")
    patch.setattr(loader_module, "take_cores", lambda environ, tp_degree: None)


def compile_instead_of_load(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(TransformersNeuronx, "load", lambda self, folder: self.compile_and_load())


def unknown_setting(patch: pytest.MonkeyPatch) -> None:
    build = TransformersNeuronx.build.__func__  # type: ignore[attr-defined]

    def misspelt(cls: Any, *arguments: Any, **keywords: Any) -> Any:
        import transformers_neuronx

        original = transformers_neuronx.LlamaForSampling.from_pretrained
        with pytest.MonkeyPatch.context() as inner:
            inner.setattr(
                transformers_neuronx.LlamaForSampling,
                "from_pretrained",
                lambda path, **settings: original(path, **settings, max_length=128),
            )
            return build(cls, *arguments, **keywords)

    patch.setattr(TransformersNeuronx, "build", classmethod(misspelt))


def load_twice(patch: pytest.MonkeyPatch) -> None:
    original = TransformersNeuronx.load

    def load(self: Any, folder: Path) -> None:
        original(self, folder)
        self._model.to_neuron()

    patch.setattr(TransformersNeuronx, "load", load)


def other_length(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(adapter, "_positions", lambda model_type, parameters: parameters.n_positions + 1)


MISTAKES: dict[str, Mistake] = {
    "slots left out": calling(without_slots),
    "positions left out": calling(without_positions),
    "positions in one dimension": calling(flat_positions),
    "position too far": calling(position_too_far),
    "position not moved": calling(position_again),
    "a live slot left out of a decode": calling(one_row_less),
    "a short prompt as a decode": calling(short_prompt_as_decode),
    "padding taken for text": calling(pad_seen),
    "wrong slot": calling(wrong_slot),
    "unknown keyword of forward": calling(unknown_keyword),
    "logits in another order": rows_out_of_order,
    "decodes not in step": uneven_decodes,
    "every core taken": all_cores,
    "compiling instead of loading": compile_instead_of_load,
    "unknown setting of the model": unknown_setting,
    "loaded twice": load_twice,
    "another length than compiled": other_length,
}


def test_without_a_mistake_nothing_is_seen(
    model: Path, artifacts: Path, neuron: NeuronHost
) -> None:
    """Otherwise the tests below would show nothing."""
    compiles = neuron.count("compile")

    assert [len(text) for text in texts(load(model, artifacts=artifacts))] == [6] * 4
    assert neuron.violations() == []
    assert neuron.count("compile") == compiles


@pytest.mark.parametrize("name", MISTAKES)
def test_a_mistake_is_seen(
    name: str, model: Path, artifacts: Path, neuron: NeuronHost, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As an error, as a violation, as a compile, or in the text."""
    right = texts(load(model, artifacts=artifacts))
    neuron.restart()
    compiles = neuron.count("compile")
    MISTAKES[name](monkeypatch)
    wrong: list[list[int]] | None = None

    with suppress(Exception):
        wrong = texts(load(model, artifacts=artifacts))

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

    with pytest.raises((ValueError, TypeError)):
        asyncio.run(collect())
