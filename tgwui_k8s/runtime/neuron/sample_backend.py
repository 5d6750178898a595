"""contract.Backend over a library's own sampling loop: one text at a time, on one thread.

For models that cannot batch continuously. Everything that touches the model runs on one thread of
its own; what it produces comes to the event loop as a queue that always ends, also when the
library fails. A request that goes away is cancelled within one token.
"""

from __future__ import annotations

import asyncio
import queue
import threading
from collections.abc import AsyncIterator
from dataclasses import dataclass, field

import msgspec

from tgwui_k8s.contract import (
    Capabilities,
    EngineStats,
    FinishReason,
    GenerationRequest,
    ModelInfo,
    TokenDelta,
)
from tgwui_k8s.errors import ContextLengthError, DeadlineExceededError
from tgwui_k8s.runtime.neuron.sampling import SampleCall, SamplingModel
from tgwui_k8s.sampling import SamplingParams

_CLOSE_SECONDS = 30.0

_NEVER_HONOURED = (
    *("min_tokens", "ban_eos_token", "dynamic_temperature", "smoothing_factor", "min_p"),
    *("typical_p", "tfs", "top_a", "epsilon_cutoff", "eta_cutoff", "top_n_sigma"),
    *("xtc_probability", "mirostat_mode", "presence_penalty", "frequency_penalty"),
    *("repetition_penalty", "encoder_repetition_penalty", "dry_multiplier", "logit_bias"),
    *("banned_token_ids", "guidance_scale"),
)


def sample_capabilities(lacking: tuple[str, ...]) -> Capabilities:
    """What a library's loop can do; the API refuses the rest."""
    return Capabilities(
        logprobs=False,
        prompt_logprobs=False,
        guidance=False,
        resume=False,
        unsupported_params=(*_NEVER_HONOURED, *lacking),
    )


@dataclass(eq=False)
class _Job:
    """One choice under way; `post` brings its tokens, at the end None or what went wrong."""

    call: SampleCall
    loop: asyncio.AbstractEventLoop
    news: asyncio.Queue[int | Exception | None] = field(default_factory=asyncio.Queue)
    is_expired: bool = False

    def post(self, item: int | Exception | None) -> None:
        """From the model's thread; without effect where the event loop has ended."""
        try:
            self.loop.call_soon_threadsafe(self.news.put_nowait, item)
        except RuntimeError:
            self.call.cancelled.set()

    def expire(self) -> None:
        """The request's time is up."""
        self.is_expired = True
        self.call.cancelled.set()


class SampleBackend:
    """One model, its thread, and the requests that wait for it."""

    def __init__(self, model: SamplingModel, info: ModelInfo) -> None:
        """Starts the thread, and runs a short text: the first request shall not wait longer."""
        self._model = model
        self._info = info
        self._stats = EngineStats()
        self._waiting: queue.SimpleQueue[_Job | None] = queue.SimpleQueue()
        self._jobs: dict[tuple[str, int], _Job] = {}
        _warm_up(model)
        self._thread = threading.Thread(target=self._run, name="neuron-sample", daemon=True)
        self._thread.start()

    @property
    def info(self) -> ModelInfo:
        """The loaded model."""
        return self._info

    @property
    def stats(self) -> EngineStats:
        """A step is a token: the device computes nothing else."""
        return self._stats

    async def generate(self, request: GenerationRequest) -> AsyncIterator[list[TokenDelta]]:
        """One choice after the other. Closing the iterator ends the one that runs.

        Raises what the library raises: after that nothing on the device can be trusted.
        """
        deadline = asyncio.get_running_loop().time() + (request.timeout_seconds or 0.0)
        for index in range(request.num_choices):
            call = SampleCall.make(
                request.prompt_token_ids,
                request.params,
                choice=index,
                eos_token_ids=self._info.eos_token_ids,
            )
            refused = self._refuse(call, index)
            if refused is not None:
                yield [refused]
                continue
            job = _Job(call, asyncio.get_running_loop())
            timer = None
            if request.timeout_seconds is not None:
                timer = job.loop.call_at(deadline, job.expire)
            self._jobs[request.request_id, index] = job
            self._waiting.put(job)
            try:
                async for delta in self._follow(job, index, request.params):
                    yield [delta]
            finally:
                call.cancelled.set()
                del self._jobs[request.request_id, index]
                if timer is not None:
                    timer.cancel()

    def abort_choice(self, request_id: str, index: int) -> None:
        """End one choice; unknown ids are ignored."""
        job = self._jobs.get((request_id, index))
        if job is not None:
            job.call.cancelled.set()

    async def close(self) -> None:
        """End what runs, then the thread; the cores are free when the process has exited."""
        for job in self._jobs.values():
            job.call.cancelled.set()
        self._waiting.put(None)
        await asyncio.get_running_loop().run_in_executor(None, self._thread.join, _CLOSE_SECONDS)
        self._model.close()

    # ------------------------------------------------------------------------- on the event loop

    def _refuse(self, call: SampleCall, index: int) -> TokenDelta | None:
        """The only delta of a choice that needs no computing, or that cannot be computed."""
        longest = self._info.max_prompt_len or self._info.max_model_len
        length = len(call.prompt) + call.max_tokens
        if len(call.prompt) > longest or length > self._info.max_model_len:
            return TokenDelta(
                index,
                (),
                "error",
                error=f"{length} tokens do not fit the {self._info.max_model_len} compiled for.",
                error_code=ContextLengthError.code,
            )
        return TokenDelta(index, (), "length") if call.max_tokens == 0 else None

    async def _follow(
        self, job: _Job, index: int, params: SamplingParams
    ) -> AsyncIterator[TokenDelta]:
        """The deltas of one choice; the last one has its reason."""
        ends = frozenset(job.call.end_token_ids if self._model.ends_at_tokens else ())
        num_tokens = 0
        while isinstance(item := await job.news.get(), int):
            num_tokens += 1
            reason: FinishReason | None = None
            if item in ends:
                reason = "stop"
            elif num_tokens == params.max_tokens:
                reason = "length"
            yield TokenDelta(index, (item,), reason, item if reason == "stop" else None)
            if reason is not None:
                return
        if item is not None:
            raise item
        if job.is_expired:
            message, code = "The request ran past its deadline.", DeadlineExceededError.code
            yield TokenDelta(index, (), "error", error=message, error_code=code)
        else:
            yield TokenDelta(index, (), "abort")

    # --------------------------------------------------------------------- on the model's thread

    def _run(self) -> None:
        while (job := self._waiting.get()) is not None:
            self._count(num_requests_running=1, num_requests_waiting=self._waiting.qsize())
            error: Exception | None = None
            try:
                if not job.call.cancelled.is_set():
                    self._sample(job)
            except Exception as caught:  # noqa: BLE001 - it is raised again, where it is awaited
                error = caught
            self._count(num_requests_running=0, num_requests_waiting=self._waiting.qsize())
            job.post(error)

    def _sample(self, job: _Job) -> None:
        def on_token(token_id: int) -> None:
            self._count(
                num_steps=self._stats.num_steps + 1,
                generation_tokens=self._stats.generation_tokens + 1,
            )
            job.post(token_id)

        num_prompt_tokens = self._stats.prompt_tokens + len(job.call.prompt)
        self._count(prompt_tokens=num_prompt_tokens)
        self._model.sample(job.call, on_token)

    def _count(self, **figures: int) -> None:
        self._stats = msgspec.structs.replace(self._stats, **figures)


def _warm_up(model: SamplingModel) -> None:
    params = SamplingParams(max_tokens=1, temperature=0.0, ignore_eos=True)
    call = SampleCall.make((0, 0), params, choice=0, eos_token_ids=())
    model.sample(call, lambda token_id: None)
