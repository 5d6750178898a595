"""The GPU's way through a step, with its kernels and recorder played by doubles: plans in numbers,
fixed memory, padding and the ladder give Transformers' own logits."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from tests.helpers.numbered_attention import NumberedAttention
from tests.helpers.paged_driver import PagedDriver
from tests.helpers.replays import ReplayingBackend, Replays
from tests.helpers.transformers_models import (
    ModelPair,
    assert_close,
    load_reference,
    random_tokens,
)
from tgwui_k8s.contract import Batch, ScheduledSequence
from tgwui_k8s.demo.tiny import make_checkpoint
from tgwui_k8s.runtime import transformers_runner
from tgwui_k8s.runtime.transformers_model import ATTENTION_NAME, register_attention
from tgwui_k8s.runtime.transformers_runner import probe_layers


@pytest.fixture(scope="module", params=["llama", "gemma2", "gpt_oss"])
def replaying(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[ModelPair, Replays]]:
    """A model that is stepped like on a GPU: plain; with windows and soft caps; with sinks."""
    backend = ReplayingBackend(NumberedAttention)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(transformers_runner, "choose_backend", backend)
        pair = ModelPair.make(tmp_path_factory.mktemp("model"), request.param)
    pair.runner.warm_up()
    yield pair, backend.record
    pair.runner.close()


def test_a_step_is_recorded_for_every_size(replaying: tuple[ModelPair, Replays]) -> None:
    """Up to the eight sequences that may run, at warm-up."""
    assert replaying[1].num_recorded == len((1, 2, 4, 8))


def test_decodes_are_replayed_and_others_are_not(replaying: tuple[ModelPair, Replays]) -> None:
    """Prompts, a mixed step, then batches that grow and shrink over the ladder, some padded."""
    models, record = replaying
    tokens = {name: random_tokens(60, seed) for seed, name in enumerate("abcde")}
    expected = {name: models.expected(ids) for name, ids in tokens.items()}
    driver = PagedDriver(models.runner)
    sequences = {name: driver.start() for name in tokens}

    def check(**num_tokens: int) -> int:
        before = record.num_replayed
        parts = {}
        for name, count in num_tokens.items():
            start = sequences[name].num_computed
            parts[name] = (sequences[name], tokens[name][start : start + count])
        results = driver.run(*parts.values())
        for (name, (sequence, ids)), logits in zip(parts.items(), results, strict=True):
            end = sequence.num_computed
            assert_close(logits, expected[name][end - len(ids) : end])
        return record.num_replayed - before

    assert check(a=40, b=3, c=20) == 0
    assert check(a=1, d=30, b=1) == 0
    for names in ("a", "ab", "cab", "abdc", "da", "d", "dcb"):
        assert check(**dict.fromkeys(names, 1)) == 1
    assert check(a=1, e=1, b=1, c=1, d=1) == 1
    assert check(b=2, a=1) == 0


def test_tokens_that_the_host_has_not_seen(replaying: tuple[ModelPair, Replays]) -> None:
    """A replayed step takes the tokens of the step before from the device."""
    models, _ = replaying
    prompt = random_tokens(10, seed=5)
    driver = PagedDriver(models.runner)
    sequence, _ = driver.prefill(prompt)
    tables = tuple(list(table) for table in sequence.block_tables)
    unseen = ScheduledSequence(sequence.row, len(prompt), [~1], tables, 1)
    logits = models.runner.launch(Batch([unseen], 1), torch.tensor([3, 44]))
    assert_close(np.asarray(logits), models.expected([*prompt, 44])[-1:])


class NeverWaiting(TorchDispatchMode):
    """Refuses what a recorded step cannot do: to look at a number, to make as many as there are."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        """See `TorchDispatchMode`."""
        name = func.name()
        assert name not in {"aten::_local_scalar_dense", "aten::nonzero"}, name
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize(
    "architecture",
    ["llama", "mistral", "qwen2", "qwen3", "gemma", "gemma2", "gemma3_text", "phi", "phi3", "gpt2"],
)
def test_models_that_can_be_recorded(architecture: str, tmp_path: Path) -> None:
    """Their forward never waits for the device; a mixture of experts may, and runs unrecorded."""
    make_checkpoint(tmp_path, architecture)
    model = load_reference(tmp_path)
    register_attention()
    model.config._attn_implementation = ATTENTION_NAME
    with NeverWaiting():
        assert probe_layers(model, torch.device("cpu"), 128)
