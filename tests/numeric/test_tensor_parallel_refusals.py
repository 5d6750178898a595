"""What is not shared among ranks, and how the ranks of a load that fails end."""

from __future__ import annotations

import os
import queue
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch

from loaders.hf_transformers import TransformersLoader
from tests.helpers.transformers_models import load_request
from tgwui_k8s.contract import Batch, LoadRequest, ModelRunner, ScheduledSequence
from tgwui_k8s.demo.tiny import make_checkpoint
from tgwui_k8s.errors import NotEnoughMemoryError, UnsupportedModelError
from tgwui_k8s.runtime.tensor_parallel.messages import Execute, WarmUp, encode, receive
from tgwui_k8s.runtime.tensor_parallel.workers import Workers

TWO = {"tensor_parallel_size": "2"}


def load(request: LoadRequest) -> ModelRunner:
    return TransformersLoader().load(request, lambda _: None)


@pytest.fixture(scope="module", name="llama")
def _llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four heads, two key heads."""
    return make_checkpoint(tmp_path_factory.mktemp("llama"), "llama")


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"options": {"tensor_parallel_size": "4"}}, r"num_key_value_heads of 2; what does: 1, 2"),
        ({"options": {"tensor_parallel_size": "3"}}, r"num_attention_heads of 4; what does: 1, 2"),
        ({"options": {"tensor_parallel_size": "two"}}, r"=two is not a number of GPUs"),
        ({"options": {"tensor_parallel_size": "0"}}, r"=0 is not a number of GPUs"),
        ({"options": {**TWO, "weights": "int8"}}, r"--load-in-8bit and .* leave one out"),
        ({"options": TWO, "adapters": {}}, r"LoRA adapters .* use --loader vLLM"),
        ({"options": {**TWO, "nonsense": "1"}}, r"no option 'nonsense'"),
    ],
)
def test_what_cannot_be_shared_is_refused(llama: Path, fields: dict[str, Any], words: str) -> None:
    """Before any process is started, with what to do instead."""
    with pytest.raises(UnsupportedModelError, match=words):
        load(load_request(llama, **fields))


def test_models_without_a_plan_are_refused(tmp_path: Path) -> None:
    """Transformers does not know how to cut GPT-2."""
    folder = make_checkpoint(tmp_path, "gpt2")

    with pytest.raises(UnsupportedModelError, match=r"no plan for .* 'gpt2' models; use .* vLLM"):
        load(load_request(folder, options=TWO))


def test_more_ranks_than_gpus_are_refused(llama: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With how many there are; and GPUs that are there must not be half used."""
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)

    with pytest.raises(UnsupportedModelError, match=r"PyTorch sees 1 GPU; lower it"):
        load(load_request(llama, device="cuda", options=TWO))
    with pytest.raises(UnsupportedModelError, match=r"hide the GPUs"):
        load(load_request(llama, device="cpu", options=TWO))


def test_second_model_of_a_process_is_refused(llama: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """PyTorch has one process group for all: it belongs to the first."""
    monkeypatch.setattr(torch.distributed, "is_initialized", lambda: True)

    with pytest.raises(UnsupportedModelError, match="close it before the next"):
        load(load_request(llama, options=TWO))


def test_failed_load_leaves_no_rank_behind(llama: Path) -> None:
    """A cache that does not fit is rank 0's error, and the other rank ends with it."""
    with pytest.raises(NotEnoughMemoryError, match="KV cache"):
        load(load_request(llama, options=TWO, kv_cache_bytes=1 << 50))

    children = psutil.Process().children(recursive=True)
    assert not any("tensor_parallel" in " ".join(child.cmdline()) for child in children)
    assert not torch.distributed.is_initialized()


def test_rank_that_dies_is_told() -> None:
    """With its number and how it ended; ranks that are closed are no deaths."""
    deaths: queue.Queue[tuple[int, int]] = queue.Queue()
    workers = Workers(3, lambda rank, returncode: deaths.put((rank, returncode)))
    workers.processes[1].kill()

    assert deaths.get(timeout=20) == (2, -9)
    workers.close()
    assert deaths.empty()
    assert not workers.meeting_file.parent.exists()


def test_messages_survive_the_pipe() -> None:
    """What goes in comes out, in order; a pipe that breaks off says nothing more."""
    part = ScheduledSequence(3, 17, [5, 6], ([1, 2], [-1, 4]), num_logits=1)
    step = Execute(Batch([part], num_tokens=2))
    sent = encode(step) + encode(WarmUp()) + encode(step)[:-1]
    reader, writer = os.pipe()
    with os.fdopen(writer, "wb") as pipe:
        pipe.write(sent)
    with os.fdopen(reader, "rb") as pipe:
        received = [receive(pipe), receive(pipe), receive(pipe)]

    assert received == [step, WarmUp(), None]
