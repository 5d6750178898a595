"""The Neuron loader on the stand-in: its text is Transformers', whatever runs beside it."""

from __future__ import annotations

import asyncio
import fcntl
import random
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from tests.helpers.neuron import NeuronHost
from tests.helpers.neuron_models import TINY, as_options, compile_model, release_device
from tgwui_k8s.contract import (
    Batch,
    GenerationRequest,
    LoadProgress,
    LoadRequest,
    ModelRunner,
    ScheduledSequence,
    TokenDelta,
)
from tgwui_k8s.demo.tiny import make_checkpoint
from tgwui_k8s.engine.core import EngineCore
from tgwui_k8s.engine.messages import EngineSettings
from tgwui_k8s.errors import IntegrityError, StartupError
from tgwui_k8s.neuron.instances import allowed_tp_degrees
from tgwui_k8s.neuron.shape import ModelShape
from tgwui_k8s.registry import get_loader
from tgwui_k8s.sampling import SamplingParams

SETTINGS = EngineSettings(max_num_seqs=64, max_waiting_requests=64)
SHAPE = {"hidden_size": 3840, "num_hidden_layers": 1, "vocab_size": 8}
NEVER_ENDS = 511
"""An end token that the tiny model does not choose."""


@pytest.fixture(scope="module", name="checkpoint")
def _checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models") / "tiny-neuron"
    return make_checkpoint(folder, "llama", eos_token_id=NEVER_ENDS)


@pytest.fixture(name="model")
def _model(checkpoint: Path, tmp_path: Path) -> Path:
    """A folder of its own, so that artifacts of one test are not another's."""
    folder = tmp_path / "tiny-neuron"
    folder.mkdir()
    (folder / "model").symlink_to(checkpoint)
    (folder / "tokenizer").symlink_to(checkpoint)
    return folder


@pytest.fixture(name="runner")
def _runner(model: Path, neuron: NeuronHost) -> ModelRunner:
    compile_model(get_loader("Neuron"), model, **TINY)
    return load(model)


def load(model: Path, **options: Any) -> ModelRunner:
    request = LoadRequest(model_path=str(model), loader="Neuron", options=as_options(options))
    runner = get_loader("Neuron").load(request, lambda progress: None)
    assert isinstance(runner, ModelRunner)
    return runner


def greedy(checkpoint: Path, prompt: list[int], num_tokens: int) -> list[int]:
    """What Transformers says."""
    model = AutoModelForCausalLM.from_pretrained(checkpoint).float()
    ids = torch.tensor([prompt])
    answer = model.generate(
        ids,
        attention_mask=torch.ones_like(ids),
        max_new_tokens=num_tokens,
        do_sample=False,
        pad_token_id=0,
    )
    return answer[0, len(prompt) :].tolist()


def request(name: str, prompt: list[int], num_tokens: int, **params: Any) -> GenerationRequest:
    params.setdefault("temperature", 0.0)
    return GenerationRequest(
        request_id=name,
        prompt_token_ids=tuple(prompt),
        params=SamplingParams(max_tokens=num_tokens, **params),
    )


class Collected:
    """Tokens and reasons by request, as the steps bring them."""

    def __init__(self, core: EngineCore) -> None:
        self._core = core
        self.tokens: dict[str, list[int]] = {}
        self.last: dict[str, TokenDelta] = {}

    def step(self) -> None:
        for output in self._core.step():
            for delta in output.deltas:
                self.tokens.setdefault(output.request_id, []).extend(delta.token_ids)
                self.last[output.request_id] = delta
        self._core.check_integrity()

    def run(self) -> Collected:
        while self._core.has_work:
            self.step()
        return self


def answer(runner: ModelRunner, asked: GenerationRequest) -> list[int]:
    core = EngineCore(runner, SETTINGS)
    core.add_request(asked)
    return Collected(core).run().tokens[asked.request_id]


def test_text_under_continuous_batching_is_that_of_transformers(
    runner: ModelRunner, checkpoint: Path, neuron: NeuronHost
) -> None:
    """Requests of all lengths come at random times, more than there are slots: each is as alone."""
    rng = random.Random(0)
    asked = {
        str(number): ([rng.randrange(2, 500) for _ in range(length)], rng.randrange(1, 24))
        for number, length in enumerate((1, 2, 3, 7, 15, 16, 17, 1, 40, 90, 5, 1))
    }
    waiting = [request(name, *what) for name, what in asked.items()]
    core = EngineCore(runner, SETTINGS)
    seen = Collected(core)

    while waiting or core.has_work:
        while waiting and rng.random() < 0.4:
            core.add_request(waiting.pop(0))
        seen.step()

    for name, (prompt, num_tokens) in asked.items():
        assert seen.tokens[name] == greedy(checkpoint, prompt, num_tokens), name
        assert seen.last[name].finish_reason == "length"
    assert neuron.count("forward", kind="prefill") == len(asked)
    assert max(len(event["slots"]) for event in neuron.events("forward", kind="decode")) == 4


def test_an_aborted_neighbour_changes_nothing(runner: ModelRunner, checkpoint: Path) -> None:
    """Slots that are left, also in the middle, and taken again disturb nobody."""
    prompts = {str(number): [10 * number + 7, 9, 8] for number in range(4)}
    core = EngineCore(runner, SETTINGS)
    seen = Collected(core)
    for name, prompt in prompts.items():
        core.add_request(request(name, prompt, 20))
    for _ in range(6):
        seen.step()
    core.abort("1")
    core.add_request(request("late", [5], 10))
    seen.run()

    for name in ("0", "2", "3"):
        assert seen.tokens[name] == greedy(checkpoint, prompts[name], 20)
    assert seen.tokens["late"] == greedy(checkpoint, [5], 10)


def test_a_prompt_of_one_token_leaves_the_others_alone(
    runner: ModelRunner, checkpoint: Path, neuron: NeuronHost
) -> None:
    """It is a prefill, not a decode in which everybody else is missing."""
    core = EngineCore(runner, SETTINGS)
    seen = Collected(core)
    core.add_request(request("long", [7, 8, 9], 12))
    for _ in range(3):
        seen.step()
    core.add_request(request("short", [7], 12))
    seen.run()

    assert seen.tokens["long"] == greedy(checkpoint, [7, 8, 9], 12)
    assert seen.tokens["short"] == greedy(checkpoint, [7], 12)
    assert neuron.count("forward", kind="prefill") == 2


def test_every_request_has_its_own_token_limit(runner: ModelRunner) -> None:
    """A limit is not that of the batch, nor reset when somebody joins."""
    core = EngineCore(runner, SETTINGS)
    seen = Collected(core)
    for number in (1, 2, 5, 9, 17):
        core.add_request(request(str(number), [number, 3], number, ignore_eos=True))
    seen.run()

    assert {name: len(tokens) for name, tokens in seen.tokens.items()} == {
        str(number): number for number in (1, 2, 5, 9, 17)
    }


def test_end_tokens_and_their_reason(
    checkpoint: Path, model: Path, runner: ModelRunner, neuron: NeuronHost
) -> None:
    """A list of end tokens in generation_config.json counts; the token is part of the answer."""
    text = greedy(checkpoint, [7, 8, 9], 12)
    core = EngineCore(runner, SETTINGS)
    core.add_request(request("stop", [7, 8, 9], 12, stop_token_ids=(text[4], NEVER_ENDS)))
    seen = Collected(core).run()

    first = text.index(text[4])
    assert seen.tokens["stop"] == text[: first + 1]
    assert seen.last["stop"].finish_reason == "stop"
    assert NEVER_ENDS in runner.info.eos_token_ids


def test_equal_seeds_give_equal_texts_whatever_runs_beside(runner: ModelRunner) -> None:
    """Noise belongs to the request, not to the batch or to the process."""
    asked = request("seeded", [7, 8, 9], 12, temperature=1.0, seed=3)
    alone = answer(runner, asked)
    core = EngineCore(runner, SETTINGS)
    core.add_request(request("other", [4, 4, 4], 5, temperature=1.0, seed=4))
    core.add_request(asked)

    assert Collected(core).run().tokens["seeded"] == alone
    assert answer(runner, request("x", [7, 8, 9], 12, temperature=1.0, seed=5)) != alone


def test_the_whole_context_can_be_used(runner: ModelRunner, checkpoint: Path) -> None:
    """Up to the last compiled position, and not beyond."""
    prompt = list(range(100, 220))

    assert answer(runner, request("full", prompt, 8)) == greedy(checkpoint, prompt, 8)


def test_resumed_text_goes_on_exactly(runner: ModelRunner, checkpoint: Path) -> None:
    """Tokens generated elsewhere are computed with the prompt."""
    text = greedy(checkpoint, [7, 8, 9], 12)
    resumed = GenerationRequest(
        request_id="again",
        prompt_token_ids=(7, 8, 9),
        params=SamplingParams(max_tokens=12, temperature=0.0),
        resume_token_ids=(tuple(text[:5]),),
    )

    assert answer(runner, resumed) == text[5:]


def test_a_slot_that_missed_a_decode_is_never_continued(runner: ModelRunner) -> None:
    """Its first position has been overwritten: better an error than wrong text."""

    def part(slot: int, start: int, token_ids: list[int]) -> ScheduledSequence:
        return ScheduledSequence(slot, start, token_ids, ([slot],), 1)

    runner.execute(Batch([part(0, 0, [1, 2]), part(1, 0, [3, 4])], 4))
    runner.execute(Batch([part(1, 2, [5])], 1))

    with pytest.raises(IntegrityError, match="slot 0"):
        runner.execute(Batch([part(0, 2, [5]), part(1, 3, [6])], 2))


def test_saved_artifacts_are_loaded_without_compiling(model: Path, neuron: NeuronHost) -> None:
    """Compile, save, load: the second process compiles nothing and writes nothing."""
    artifacts = compile_model(get_loader("Neuron"), model, **TINY)
    before = {path.name: path.stat().st_mtime_ns for path in artifacts.iterdir()}
    compiles = neuron.count("compile")

    load(model).warm_up()

    assert compiles == 3
    assert neuron.count("compile") == compiles
    assert {path.name: path.stat().st_mtime_ns for path in artifacts.iterdir()} == before


def test_fine_tuned_weights_share_artifacts(
    model: Path, checkpoint: Path, tmp_path: Path, neuron: NeuronHost
) -> None:
    """Graphs take weights as inputs: another checkpoint of the same shape needs no compiling."""
    artifacts = compile_model(get_loader("Neuron"), model, **TINY)
    other = make_checkpoint(tmp_path / "other", "llama", eos_token_id=NEVER_ENDS, seed=1)

    runner = load(other, artifacts=artifacts)

    assert answer(runner, request("x", [7, 8], 6)) == greedy(other, [7, 8], 6)


def test_compiling_on_start_saves_for_the_next_start(model: Path, neuron: NeuronHost) -> None:
    """Asked for explicitly, a miss compiles once."""
    phases: list[LoadProgress] = []
    options = as_options({**TINY, "compile_on_start": True})
    asked = LoadRequest(model_path=str(model), loader="Neuron", options=options)
    get_loader("Neuron").load(asked, phases.append)
    release_device()
    compiles = neuron.count("compile")

    load(model)

    assert "compiling" in {progress.phase for progress in phases}
    assert neuron.count("compile") == compiles == 3


def test_exactly_the_needed_cores_are_taken(
    model: Path, neuron: NeuronHost, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where nobody says how many, the runtime would take all cores of the machine."""
    monkeypatch.delenv("NEURON_RT_NUM_CORES")
    compile_model(get_loader("Neuron"), model, **TINY)
    load(model)

    assert [event["cores"] for event in neuron.events("cores")] == [[0, 1], [0, 1]]


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "half"])
def test_types_go_by_their_usual_names(model: Path, neuron: NeuronHost, dtype: str) -> None:
    """And the library gets its own name for them."""
    compile_model(get_loader("Neuron"), model, **{**TINY, "amp": dtype})

    expected = "bf16" if dtype == "bfloat16" else "f16"
    assert neuron.events("construct")[-1]["arguments"]["amp"] == expected


def test_every_way_to_compile_is_known_to_the_library(model: Path, neuron: NeuronHost) -> None:
    """Layouts, quantization and shared heads reach it in its own words; nothing is swallowed."""
    options = {
        **TINY,
        **{"amp": "bf16", "quantization": "s8", "gqa": "replicated-heads", "fuse_qkv": True},
        **{"attention_layout": "BSH", "collectives_layout": "BSH", "compile_workers": 1},
    }
    compile_model(get_loader("Neuron"), model, **options)

    assert len(answer(load(model), request("x", [7, 8], 6, ignore_eos=True))) == 6


def test_mistral_runs_as_llama_does(tmp_path: Path, neuron: NeuronHost) -> None:
    """The other class that batches continuously, with its window."""
    folder = make_checkpoint(tmp_path / "mistral-neuron", "mistral", eos_token_id=NEVER_ENDS)
    compile_model(get_loader("Neuron"), folder, **TINY)
    prompt = list(range(20, 60))

    assert answer(load(folder), request("x", prompt, 12)) == greedy(folder, prompt, 12)


class Poisoned:
    """Stands for torch.cuda."""

    def __getattr__(self, name: str) -> Any:
        raise AssertionError(f"torch.cuda.{name} was touched")


def test_no_other_device_is_ever_touched(
    model: Path, neuron: NeuronHost, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The whole path runs where torch.cuda raises at the slightest touch."""

    compile_model(get_loader("Neuron"), model, **TINY)
    monkeypatch.setattr(torch, "cuda", Poisoned())

    runner = load(model)
    runner.warm_up()

    assert len(answer(runner, request("x", [7, 8], 6, ignore_eos=True))) == 6
    runner.close()


def test_the_library_s_own_loop_touches_no_other_device_either(
    model: Path, neuron: NeuronHost, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Seeding too: torch.manual_seed asks torch.cuda."""
    compile_model(get_loader("Neuron"), model, **{**TINY, "batch_size": 1}, mode="sample")
    monkeypatch.setattr(torch, "cuda", Poisoned())

    async def answer_of(backend: Any) -> int:
        params = SamplingParams(max_tokens=6, temperature=1.0, ignore_eos=True)
        asked = GenerationRequest(request_id="x", prompt_token_ids=(7, 8), params=params)
        deltas = [delta async for some in backend.generate(asked) for delta in some]
        await backend.close()
        return sum(len(delta.token_ids) for delta in deltas)

    asked = LoadRequest(model_path=str(model), loader="Neuron", options={"mode": "sample"})
    backend = get_loader("Neuron").load(asked, lambda progress: None)
    assert asyncio.run(answer_of(backend)) == 6


def test_the_stand_in_pads_heads_as_the_plan_does(neuron: NeuronHost) -> None:
    """Two implementations of one rule, written apart."""
    from transformers_neuronx.utils import get_qkv_padding

    for heads, kv_heads in ((32, 32), (40, 40), (32, 8), (64, 8), (24, 8)):
        config = {**SHAPE, "num_attention_heads": heads, "num_key_value_heads": kv_heads}
        for tp_degree in allowed_tp_degrees(None):
            padded = ModelShape.from_config(config).padded_heads(tp_degree)
            assert padded == tuple(get_qkv_padding(heads, kv_heads, tp_degree))


def test_a_second_process_is_told_who_holds_the_cores(
    model: Path, neuron: NeuronHost, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The runtime's words are followed by what to do."""
    compile_model(get_loader("Neuron"), model, **TINY)
    monkeypatch.setenv("NEURON_RT_VISIBLE_CORES", "0-1")
    with (neuron.folder / "core-00.lock").open("w") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        with pytest.raises(StartupError, match="another process holds the NeuronCores"):
            load(model)
