"""Running a step ahead with a real model and torch's sampler, on the CPU in the device's place."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from tests.helpers.sampling_rows import make_row, random_logits
from tests.helpers.transformers_models import load_runner, random_tokens
from tgwui_k8s.async_contract import AsyncRunner, AsyncSampler
from tgwui_k8s.contract import GenerationRequest
from tgwui_k8s.demo.tiny import make_checkpoint
from tgwui_k8s.engine.core import EngineCore
from tgwui_k8s.engine.messages import EngineSettings
from tgwui_k8s.runtime.sampler import TorchSampler
from tgwui_k8s.runtime.transfers import to_host
from tgwui_k8s.runtime.transformers_runner import TransformersRunner
from tgwui_k8s.sampling import SamplingParams

AHEAD: list[dict[str, Any]] = [
    {"temperature": 0.0},
    {"seed": 1, "logprobs": 2},
    {"seed": 2, "top_k": 20, "top_p": 0.9, "min_p": 0.01},
    {"seed": 8, "top_p": 0.9},
    {"seed": 3, "typical_p": 0.9, "tfs": 0.95, "xtc_probability": 1.0},
    {"seed": 4, "top_a": 0.2, "epsilon_cutoff": 3.0, "eta_cutoff": 3.0, "top_n_sigma": 2.0},
    {"seed": 5, "dynamic_temperature": True, "smoothing_factor": 0.3, "logit_bias": {5: 2.0}},
    {"seed": 6, "guidance_scale": 1.5},
]


@pytest.fixture(scope="module", name="model")
def _model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_checkpoint(tmp_path_factory.mktemp("model"), "llama")


def generate(runner: TransformersRunner) -> dict[str, list[int]]:
    """Tokens of a mixed crowd: prompts in chunks, few blocks, one that needs the host."""
    runner.sampler = TorchSampler()
    core = EngineCore(
        runner, EngineSettings(max_num_seqs=6, max_num_batched_tokens=24, max_waiting_requests=99)
    )
    for number, params in enumerate([*AHEAD, {"seed": 7, "repetition_penalty": 1.2}]):
        negative = tuple(random_tokens(5, seed=9)) if "guidance_scale" in params else ()
        core.add_request(
            GenerationRequest(
                request_id=f"r{number}",
                prompt_token_ids=tuple(random_tokens(7 * number + 3, seed=number)),
                negative_prompt_token_ids=negative,
                params=SamplingParams(max_tokens=12 + number, **params),
            )
        )
    tokens: dict[str, list[int]] = {}
    while core.has_work:
        for output in core.step():
            for delta in output.deltas:
                tokens.setdefault(output.request_id, []).extend(delta.token_ids)
        core.check_integrity()
    return tokens


def test_the_text_is_the_same(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In float32, token for token; the ids that go from step to step never pass the host."""
    expected = generate(load_runner(model))
    assert len(expected) == len(AHEAD) + 1

    monkeypatch.setattr(TransformersRunner, "runs_ahead", True)
    runner = load_runner(model)
    launches = []
    launch = runner.launch
    monkeypatch.setattr(
        runner, "launch", lambda batch, ids: launches.append(ids) or launch(batch, ids)
    )
    assert generate(runner) == expected
    assert sum(isinstance(ids, torch.Tensor) for ids in launches) > 10


def test_a_runner_runs_ahead_only_on_a_device(model: Path) -> None:
    """On the CPU there is nothing to overlap with."""
    runner = load_runner(model)
    assert isinstance(runner, AsyncRunner)
    assert isinstance(TorchSampler(), AsyncSampler)
    assert not runner.runs_ahead


class Questions(TorchDispatchMode):
    """Notes operators whose result the host would have to wait for."""

    def __init__(self) -> None:
        super().__init__()
        self.asked: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Look at an operator, then run it."""
        name = str(func)
        if "_local_scalar_dense" in name or "nonzero" in name or "masked_select" in name:
            self.asked.append(name)
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("params", AHEAD)
def test_launching_asks_the_device_nothing(
    params: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """No operator in the way of a choice needs its numbers on the host."""
    monkeypatch.setattr("tgwui_k8s.runtime.samplers.torch_rows.is_host", lambda _: False)
    sampler = TorchSampler()
    logits = torch.from_numpy(random_logits(1, 4, 5000))
    rows = [make_row((1, 2), eos=(3,), **params) for _ in range(3)]
    assert sampler.can_run_ahead(rows[0].params)
    with Questions() as questions:
        pending = sampler.launch(logits, rows, [0, 1, 2], [None, 3, None])
    assert questions.asked == []
    assert len(pending.read()) == 3
    assert pending.token_ids.tolist() == [
        token.token_id for token in sampler.sample(logits, rows, [0, 1, 2], [None, 3, None])
    ]


@pytest.mark.parametrize(
    "params",
    [
        {"presence_penalty": 0.1},
        {"encoder_repetition_penalty": 1.1},
        {"temperature": 0.0, "repetition_penalty": 1.1},
        {"mirostat_mode": 2},
    ],
)
def test_some_choices_cannot_be_made_ahead(params: dict[str, Any]) -> None:
    """They look at earlier tokens, or at how likely those were."""
    assert not TorchSampler().can_run_ahead(SamplingParams(max_tokens=1, **params))


def test_arrays_come_to_the_host_as_they_were() -> None:
    """Shapes and values, token ids too large for float32 among them; also none at all."""
    arrays = [torch.tensor([2**40 + 1, 3]), torch.ones(2, 0), torch.tensor([[0.1], [-2.0]])]
    found = to_host(arrays, torch.device("cpu"))()
    assert [part.shape for part in found] == [(2,), (2, 0), (2, 1)]
    assert found[0].tolist() == [2**40 + 1, 3]
    assert found[2].tolist() == arrays[2].tolist()
    assert to_host([], torch.device("cpu"))() == []
