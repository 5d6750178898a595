"""The fake engine without HTTP: what any API above it starts from."""

from __future__ import annotations

import asyncio
import time
from itertools import pairwise

import uvloop

from benchmarks.load.figures import Spread
from tgwui_k8s.contract import GenerationRequest, LoadRequest
from tgwui_k8s.engine.client import EngineClient
from tgwui_k8s.engine.messages import EngineSettings
from tgwui_k8s.sampling import SamplingParams

_PROMPT = tuple(b"A prompt.")


def direct_itl(streams: int, tokens_per_second: float, num_tokens: int = 300) -> Spread:
    """Times between a stream's steps, as they reach a consumer in the API process's place."""
    return uvloop.run(_measure(streams, tokens_per_second, num_tokens))


async def _measure(streams: int, tokens_per_second: float, num_tokens: int) -> Spread:
    engine = EngineClient(log_level="error")
    options = {"tokens_per_second": str(tokens_per_second)}
    request = LoadRequest(model_path="fake", loader="fake", max_num_seqs=streams, options=options)
    settings = EngineSettings(max_num_seqs=streams, max_waiting_requests=streams)
    try:
        await engine.load(request, settings)
        params = SamplingParams(max_tokens=num_tokens, temperature=0.0, ignore_eos=True)
        gaps = await asyncio.gather(
            *(
                _consume(
                    engine,
                    GenerationRequest(
                        request_id=str(index), prompt_token_ids=(*_PROMPT, index), params=params
                    ),
                )
                for index in range(streams)
            )
        )
    finally:
        await engine.close()
    spread = Spread.of(gap for stream in gaps for gap in stream)
    assert spread is not None
    return spread


async def _consume(engine: EngineClient, request: GenerationRequest) -> list[float]:
    times = [time.perf_counter() async for _ in engine.generate(request)]
    # The first tokens come while other streams' prompts are computed.
    return [later - earlier for earlier, later in pairwise(times)][10:]
