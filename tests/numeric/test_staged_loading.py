"""A model whose weights come through the buffers that a GPU would copy from."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from loaders.hf_transformers import TransformersLoader
from tests.helpers.transformers_models import load_request, load_runner
from tgwui_k8s.contract import Batch, LoadProgress, ScheduledSequence
from tgwui_k8s.demo.tiny import make_checkpoint
from tgwui_k8s.errors import BrokenModelError
from tgwui_k8s.runtime import checkpoint_reader, staged_reads
from tgwui_k8s.runtime.transformers_runner import TransformersRunner


@pytest.fixture(name="model")
def _model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(staged_reads, "PIECE_BYTES", 1000)
    return make_checkpoint(tmp_path / "model", "llama")


def logits(runner: TransformersRunner) -> torch.Tensor:
    """Of a short prompt's last token."""
    tables = tuple([0] for _ in runner.layout.groups)
    scheduled = ScheduledSequence(0, 0, [1, 2, 3], tables, num_logits=1)
    return runner.execute(Batch([scheduled], num_tokens=3))


def test_the_model_is_the_same(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Transformers' own threads ask for the tensors; the bytes that are told add up."""
    expected = logits(load_runner(model))

    monkeypatch.setattr(checkpoint_reader, "is_host", lambda _: False)
    told: list[LoadProgress] = []
    found = TransformersLoader().load(load_request(model), told.append)
    assert isinstance(found, TransformersRunner)
    assert torch.equal(logits(found), expected)
    sizes = [progress.bytes_read for progress in told if progress.phase == "loading"]
    assert sizes == sorted(sizes)
    assert len(set(sizes)) > 100


def test_weights_that_end_too_early_are_named(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Cut while they are read, which the check of the header before cannot see."""
    monkeypatch.setattr(checkpoint_reader, "is_host", lambda _: False)
    weights = model / "model.safetensors"

    def cut(progress: LoadProgress) -> None:
        if progress.phase == "loading" and weights.stat().st_size > 5000:
            with weights.open("r+b") as file:
                file.truncate(5000)

    with pytest.raises(BrokenModelError, match=r"model\.safetensors became shorter"):
        TransformersLoader().load(load_request(model), cut)
