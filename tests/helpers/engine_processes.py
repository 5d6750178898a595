"""Engine processes for tests: how to load the fake model, and what `/proc` says of a process."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path

from loaders.fake import FakeLoader
from tgwui_k8s.contract import GenerationRequest, LoadRequest
from tgwui_k8s.engine.core import EngineCore
from tgwui_k8s.engine.messages import EngineSettings
from tgwui_k8s.sampling import SamplingParams

SETTINGS = EngineSettings(max_num_seqs=8, max_waiting_requests=100)


def fake_model(**options: object) -> LoadRequest:
    """The fake model for eight sequences of 256 tokens."""
    return LoadRequest(
        model_path="fake",
        loader="fake",
        max_model_len=256,
        max_num_seqs=8,
        options={name: str(value) for name, value in options.items()},
    )


def make_request(
    request_id: str, *, max_tokens: int = 8, num_choices: int = 1, temperature: float = 0.0
) -> GenerationRequest:
    """A request whose prompt is its id."""
    return GenerationRequest(
        request_id=request_id,
        prompt_token_ids=tuple(request_id.encode()),
        params=SamplingParams(max_tokens=max_tokens, temperature=temperature, seed=7),
        num_choices=num_choices,
    )


def tokens_without_processes(request: GenerationRequest) -> dict[int, list[int]]:
    """What the engine gives for a request when it runs alone, in this process; by choice."""
    core = EngineCore(FakeLoader().load(fake_model(), lambda progress: None), SETTINGS)
    core.add_request(request)
    tokens: dict[int, list[int]] = {}
    while core.has_work:
        for output in core.step():
            for delta in output.deltas:
                tokens.setdefault(delta.index, []).extend(delta.token_ids)
    return tokens


def is_running(pid: int) -> bool:
    """False when the process is gone, or dead and not yet collected."""
    try:
        status = Path(f"/proc/{pid}/stat").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return False
    return status.rpartition(")")[2].split()[0] not in "ZX"


async def until(condition: Callable[[], bool], *, seconds: float = 20.0) -> None:
    """Wait for something that must come true."""
    deadline = asyncio.get_running_loop().time() + seconds
    while not condition():
        assert asyncio.get_running_loop().time() < deadline, "it did not come true"
        await asyncio.sleep(0.01)
