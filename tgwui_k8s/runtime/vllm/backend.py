"""contract.Backend over vLLM's `AsyncLLM`: its scheduler, cache and sampler. Needs vLLM.

Every choice of a request is a request of vLLM's, so that each can be ended alone; they share their
prompt through its prefix cache.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from msgspec.structs import replace
from vllm import SamplingParams
from vllm.lora.request import LoRARequest
from vllm.sampling_params import RequestOutputKind

from tgwui_k8s.contract import (
    EngineStats,
    FinishReason,
    GenerationRequest,
    ModelInfo,
    TokenDelta,
    TopLogprobs,
)
from tgwui_k8s.errors import DeadlineExceededError
from tgwui_k8s.runtime.vllm.sampling import to_vllm, top_logprobs
from tgwui_k8s.runtime.vllm.stats import StatsCollector

_REASONS: dict[str, FinishReason] = {"stop": "stop", "length": "length", "abort": "abort"}
_Item = TokenDelta | BaseException


class VLLMBackend:
    """One `AsyncLLM` and the requests that run on it."""

    def __init__(self, engine: Any, info: ModelInfo, collector: StatsCollector) -> None:
        self._engine = engine
        self._info = info
        self._collector = collector
        self._adapters: dict[str, LoRARequest] = {}
        self._num_adapters = 0
        self._choices: dict[tuple[str, int], asyncio.Task[None]] = {}

    @property
    def info(self) -> ModelInfo:
        """The loaded model."""
        return self._info

    @property
    def stats(self) -> EngineStats:
        """vLLM's newest figures; it tells none when the last request was aborted."""
        stats = self._collector.stats
        if self._choices:
            return stats
        return replace(stats, num_requests_running=0, num_requests_waiting=0, kv_cache_usage=0.0)

    def load_adapter(self, name: str, folder: Path) -> None:
        """Know an adapter; vLLM reads it with the first request that names it."""
        self._num_adapters += 1
        self._adapters[name] = LoRARequest(name, self._num_adapters, str(folder))

    def unload_adapter(self, name: str) -> None:
        """Forget an adapter; requests that run go on with it."""
        self._adapters.pop(name, None)

    async def generate(self, request: GenerationRequest) -> AsyncIterator[list[TokenDelta]]:
        """The choices side by side, as their tokens come. Closing the iterator ends them all.

        Raises vLLM's own error where its engine died: this process is of no use then.
        """
        news: asyncio.Queue[_Item] = asyncio.Queue()
        tasks = {
            index: asyncio.create_task(self._follow(request, index, news))
            for index in range(request.num_choices)
        }
        for index, task in tasks.items():
            self._choices[request.request_id, index] = task
        unfinished = set(tasks)
        try:
            while unfinished:
                items = [await news.get()]
                while not news.empty():
                    items.append(news.get_nowait())
                deltas = [item for item in items if isinstance(item, TokenDelta)]
                failures = [item for item in items if isinstance(item, BaseException)]
                if deltas:
                    yield deltas
                if failures:
                    raise failures[0]
                unfinished -= {delta.index for delta in deltas if delta.finish_reason is not None}
        finally:
            for index, task in tasks.items():
                task.cancel()
                self._choices.pop((request.request_id, index), None)
            await asyncio.gather(*tasks.values(), return_exceptions=True)

    def abort_choice(self, request_id: str, index: int) -> None:
        """End one choice; unknown ids are ignored."""
        task = self._choices.get((request_id, index))
        if task is not None:
            task.cancel()

    async def close(self) -> None:
        """Stop vLLM's processes and give back the devices."""
        await asyncio.to_thread(self._engine.shutdown)

    # ------------------------------------------------------------------------------- one choice

    async def _follow(
        self, request: GenerationRequest, index: int, news: asyncio.Queue[_Item]
    ) -> None:
        """Put the deltas of a choice into the queue; the last one has its reason."""
        try:
            await asyncio.wait_for(self._run(request, index, news), request.timeout_seconds)
        except asyncio.TimeoutError:
            message, code = "The request ran past its deadline.", DeadlineExceededError.code
            news.put_nowait(TokenDelta(index, (), "error", error=message, error_code=code))
        except asyncio.CancelledError:
            news.put_nowait(TokenDelta(index, (), "abort"))
        except ValueError as error:  # vLLM refuses this request, and no other
            message = " ".join(str(error).split())[:500]
            news.put_nowait(
                TokenDelta(index, (), "error", error=message, error_code="invalid_value")
            )
        except Exception as error:  # noqa: BLE001 - it is raised again, where it is awaited
            news.put_nowait(error)

    async def _run(
        self, request: GenerationRequest, index: int, news: asyncio.Queue[_Item]
    ) -> None:
        """Closing vLLM's generator, which a cancelled task does, aborts its request."""
        if request.params.max_tokens == 0:
            news.put_nowait(TokenDelta(index, (), "length"))
            return
        arguments = to_vllm(request, index, self._info.eos_token_ids)
        params = SamplingParams(**arguments, output_kind=RequestOutputKind.DELTA)
        outputs = self._engine.generate(
            {"prompt_token_ids": list(request.prompt_token_ids)},
            params,
            f"{request.request_id}-{index}",
            lora_request=self._adapters.get(request.adapter) if request.adapter else None,
            priority=request.priority,
        )
        is_first = True
        try:
            async for output in outputs:
                news.put_nowait(_to_delta(request, index, output, is_first=is_first))
                is_first = False
        finally:
            with suppress(Exception):
                await outputs.aclose()


def _to_delta(request: GenerationRequest, index: int, output: Any, *, is_first: bool) -> TokenDelta:
    (choice,) = output.outputs
    token_ids = tuple(choice.token_ids)
    logprobs: tuple[TopLogprobs, ...] = ()
    if request.params.logprobs is not None and choice.logprobs:
        pairs = zip(token_ids, choice.logprobs, strict=True)
        logprobs = tuple(top_logprobs(*pair, request.params.logprobs) for pair in pairs)
    reason = None if choice.finish_reason is None else _REASONS[choice.finish_reason]
    return TokenDelta(
        index=index,
        token_ids=token_ids,
        finish_reason=reason,
        stop_token_id=choice.stop_reason if reason == "stop" else None,
        logprobs=logprobs,
        prompt_logprobs=_prompt_logprobs(request, output) if is_first and index == 0 else None,
        num_cached_tokens=(output.num_cached_tokens or 0) if is_first else 0,
    )


def _prompt_logprobs(request: GenerationRequest, output: Any) -> tuple[TopLogprobs, ...] | None:
    num_top, found = request.params.prompt_logprobs, output.prompt_logprobs
    if num_top is None or found is None:
        return None
    targets: Sequence[int] = request.prompt_token_ids[1:]
    return tuple(
        top_logprobs(token, at, num_top) for token, at in zip(targets, found[1:], strict=True)
    )
