"""Mistakes that a Neuron loader could make, each by the rule of the library that it breaks."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch

import loaders.neuron as loader_module
from tests.helpers.neuron_models import TINY
from tgwui_k8s.engine import scheduler
from tgwui_k8s.runtime.neuron import transformers_neuronx as adapter
from tgwui_k8s.runtime.neuron.sample_backend import SampleBackend
from tgwui_k8s.runtime.neuron.slot_runner import SlotRunner
from tgwui_k8s.runtime.neuron.transformers_neuronx import TransformersNeuronx

Mistake = Callable[[pytest.MonkeyPatch], None]

RULES = {
    1: "construction: exact types, unknown keywords swallowed",
    2: "from_pretrained reads config and weights of its folder",
    3: "nothing runs before to_neuron()",
    4: "load() is lazy, to_neuron() misses what is not there and never compiles",
    5: "any other parameter misses the saved graphs",
    6: "cores are charged, and never more than wanted",
    7: "one hold of the device",
    8: "sample() counts the prompt into its length",
    9: "prompts have two dimensions and the compiled batch",
    10: "beyond n_positions is a bare StopIteration",
    11: "numbers are floats, top_k is at least 1",
    12: "draws come from the global generator",
    13: "a streamer is asked whether it is true",
    14: "stopping criteria are one callable",
    15: "left padding needs start_ids",
    16: "what exceeds the buckets runs token by token",
    17: "calls do not overlap",
    18: "unknown keywords of sample() have no effect",
    19: "forward(): slots, positions, every live slot in every decode",
    20: "logits are float32 [rows, vocab], in the order of the rows",
}


class Wrapped:
    """The library's model, its calls changed by one of the two on their way."""

    def __init__(
        self,
        model: Any,
        forward: Callable[..., tuple[Any, ...]] | None = None,
        sample: Callable[..., tuple[Any, ...]] | None = None,
    ) -> None:
        self._model = model
        self._forward = forward
        self._sample = sample

    def __getattr__(self, name: str) -> Any:
        return getattr(self._model, name)

    def __call__(self, ids: Any, *, cache_ids: Any, start_ids: Any) -> Any:
        keywords = {"cache_ids": cache_ids, "start_ids": start_ids}
        if self._forward is None:
            return self._model(ids, **keywords)
        arguments, keywords = self._forward(ids, cache_ids, start_ids)
        return self._model(*arguments, **keywords)

    def sample(self, ids: Any, length: int, **options: Any) -> Any:
        if self._sample is None:
            return self._model.sample(ids, length, **options)
        ids, length, options = self._sample(ids, length, options)
        return self._model.sample(ids, length, **options)


def wrapping(**changes: Callable[..., tuple[Any, ...]]) -> Mistake:
    def make(patch: pytest.MonkeyPatch) -> None:
        build = TransformersNeuronx.__init__

        def init(self: Any, model: Any, *others: Any) -> None:
            build(self, Wrapped(model, **changes), *others)

        patch.setattr(TransformersNeuronx, "__init__", init)

    return make


def calling(change: Callable[..., tuple[Any, ...]]) -> Mistake:
    """A mistake in what `forward()` is given."""
    return wrapping(forward=change)


def sampling(change: Callable[..., tuple[Any, ...]]) -> Mistake:
    """A mistake in what `sample()` is given."""
    return wrapping(sample=change)


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


def building(change: Callable[[str, dict[str, Any]], tuple[str, dict[str, Any]]]) -> Mistake:
    """A mistake in what `from_pretrained()` is given."""

    def make(patch: pytest.MonkeyPatch) -> None:
        build = TransformersNeuronx.build.__func__  # type: ignore[attr-defined]

        def changed(cls: Any, *arguments: Any, **keywords: Any) -> Any:
            from transformers_neuronx import LlamaForSampling

            original = LlamaForSampling.from_pretrained

            def from_pretrained(path: str, **settings: Any) -> Any:
                path, settings = change(path, settings)
                return original(path, **settings)

            with pytest.MonkeyPatch.context() as inner:
                inner.setattr(LlamaForSampling, "from_pretrained", from_pretrained)
                return build(cls, *arguments, **keywords)

        patch.setattr(TransformersNeuronx, "build", classmethod(changed))

    return make


def unknown_setting(path: str, settings: dict[str, Any]) -> tuple[str, dict[str, Any]]:
    return path, {**settings, "max_length": 128}


def amp_as_torch_says(path: str, settings: dict[str, Any]) -> tuple[str, dict[str, Any]]:
    return path, {**settings, "amp": "bfloat16"}


def folder_above(path: str, settings: dict[str, Any]) -> tuple[str, dict[str, Any]]:
    return str(Path(path).parent), settings


def never_on_the_device(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(TransformersNeuronx, "load", lambda self, folder: self._model.load(str(folder)))


def graphs_of_another_folder(patch: pytest.MonkeyPatch) -> None:
    original = TransformersNeuronx.load
    patch.setattr(
        TransformersNeuronx, "load", lambda self, folder: original(self, folder.parent / "graphs")
    )


def load_twice(patch: pytest.MonkeyPatch) -> None:
    original = TransformersNeuronx.load

    def load(self: Any, folder: Path) -> None:
        original(self, folder)
        self._model.to_neuron()

    patch.setattr(TransformersNeuronx, "load", load)


def other_length(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(adapter, "_positions", lambda model_type, parameters: parameters.n_positions + 1)


# ------------------------------------------------------------------- in the library's own loop


def new_tokens_as_length(ids: Any, length: int, options: Any) -> tuple[Any, ...]:
    return ids, length - ids.shape[1] + 1, options


def flat_prompt(ids: Any, length: int, options: Any) -> tuple[Any, ...]:
    return ids[0], length, options


def prompt_twice(ids: Any, length: int, options: Any) -> tuple[Any, ...]:
    return ids.repeat(2, 1), length, options


def past_the_last_position(ids: Any, length: int, options: Any) -> tuple[Any, ...]:
    return ids, length + int(TINY["n_positions"]), options


def whole_temperature(ids: Any, length: int, options: Any) -> tuple[Any, ...]:
    return ids, length, {**options, "temperature": 1}


def draw_in_between(ids: Any, length: int, options: Any) -> tuple[Any, ...]:
    torch.rand(1)
    return ids, length, options


def criteria_as_a_list(ids: Any, length: int, options: Any) -> tuple[Any, ...]:
    return ids, length, {**options, "stopping_criteria_list": [lambda ids, scores: False]}


def padded_without_saying(ids: Any, length: int, options: Any) -> tuple[Any, ...]:
    return torch.nn.functional.pad(ids, (4, 0)), length + 4, options


def seed_as_keyword(ids: Any, length: int, options: Any) -> tuple[Any, ...]:
    return ids, length, {**options, "seed": 3}


def streamer_with_a_length(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(adapter._Streamer, "__len__", lambda self: 0, raising=False)


def prompts_beyond_the_buckets(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(SampleBackend, "_refuse", lambda self, call, index: None)


def call_within_a_call(patch: pytest.MonkeyPatch) -> None:
    original = TransformersNeuronx.sample

    def sample(self: Any, call: Any, on_token: Any) -> None:
        original(self, call, lambda token: original(self, call, on_token))

    patch.setattr(TransformersNeuronx, "sample", sample)


@dataclass(frozen=True)
class Case:
    """A mistake, the rule it breaks, and whether it is made in the library's own loop."""

    rule: int
    mistake: Mistake
    in_sample: bool = False


MISTAKES: dict[str, Case] = {
    "unknown setting of the model": Case(1, building(unknown_setting)),
    "amp under another name": Case(1, building(amp_as_torch_says)),
    "the folder above the model": Case(2, building(folder_above)),
    "asked before it is on the device": Case(3, never_on_the_device),
    "compiling instead of loading": Case(4, compile_instead_of_load),
    "graphs of another folder": Case(4, graphs_of_another_folder),
    "another length than compiled": Case(5, other_length),
    "every core taken": Case(6, all_cores),
    "loaded twice": Case(7, load_twice),
    "new tokens as the whole length": Case(8, sampling(new_tokens_as_length), in_sample=True),
    "a prompt of one dimension": Case(9, sampling(flat_prompt), in_sample=True),
    "another batch than compiled": Case(9, sampling(prompt_twice), in_sample=True),
    "past the last position": Case(10, sampling(past_the_last_position), in_sample=True),
    "a temperature that is no float": Case(11, sampling(whole_temperature), in_sample=True),
    "a draw between seed and sample": Case(12, sampling(draw_in_between), in_sample=True),
    "a streamer that is false": Case(13, streamer_with_a_length, in_sample=True),
    "stopping criteria as a list": Case(14, sampling(criteria_as_a_list), in_sample=True),
    "padding without saying so": Case(15, sampling(padded_without_saying), in_sample=True),
    "a prompt beyond the buckets": Case(16, prompts_beyond_the_buckets, in_sample=True),
    "a call within a call": Case(17, call_within_a_call, in_sample=True),
    "the seed as a keyword": Case(18, sampling(seed_as_keyword), in_sample=True),
    "slots left out": Case(19, calling(without_slots)),
    "positions left out": Case(19, calling(without_positions)),
    "positions in one dimension": Case(19, calling(flat_positions)),
    "position too far": Case(19, calling(position_too_far)),
    "position not moved": Case(19, calling(position_again)),
    "a live slot left out of a decode": Case(19, calling(one_row_less)),
    "a short prompt as a decode": Case(19, calling(short_prompt_as_decode)),
    "padding taken for text": Case(19, calling(pad_seen)),
    "wrong slot": Case(19, calling(wrong_slot)),
    "unknown keyword of forward": Case(19, calling(unknown_keyword)),
    "decodes not in step": Case(19, uneven_decodes),
    "logits in another order": Case(20, rows_out_of_order),
}
