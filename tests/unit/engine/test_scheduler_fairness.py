"""A long prompt beside running streams: nobody waits for it, and nobody pays for its length.

Counted in tokens and blocks per step, not in seconds.
"""

from __future__ import annotations

import numpy as np
import pytest

from tests.helpers.toy_runner import VOCAB_SIZE, ToyRunner, make_core
from tgwui_k8s.contract import Batch, GenerationRequest
from tgwui_k8s.sampling import SamplingParams

BUDGET = 512
NUM_STREAMS = 16
LONG = 16_384


class RecordingRunner(ToyRunner):
    """Computes nothing, and keeps what each step was asked for."""

    def execute(self, batch: Batch) -> np.ndarray:
        self.batches.append(batch)
        return np.zeros((batch.num_logits, VOCAB_SIZE), np.float32)


@pytest.fixture
def core():
    """Sixteen streams that are decoding."""
    runner = RecordingRunner(num_blocks=2000, block_size=16, max_model_len=2 * LONG)
    core = make_core(runner, max_num_seqs=32, max_num_batched_tokens=BUDGET)
    for index in range(NUM_STREAMS):
        core.add_request(ask(f"stream {index}", 8, index))
    core.step()
    runner.batches.clear()
    return core


def ask(name: str, length: int, first: int = 0) -> GenerationRequest:
    prompt = tuple((first + index * index) % 39 + 1 for index in range(length))
    params = SamplingParams(max_tokens=10_000, temperature=0.0, ignore_eos=True)
    return GenerationRequest(request_id=name, prompt_token_ids=prompt, params=params)


def test_every_stream_gets_a_token_in_every_step_of_a_long_prompt(core) -> None:
    """16k tokens arrive: each step still moves all streams on, and no step is above the budget."""
    core.add_request(ask("long", LONG))
    answered: set[str] = set()
    while "long" not in answered:
        outputs = core.step()
        told = {output.request_id for output in outputs if output.deltas}
        assert {f"stream {index}" for index in range(NUM_STREAMS)} <= told
        answered |= told
    sizes = [batch.num_tokens for batch in core.runner.batches]
    assert max(sizes) <= BUDGET
    assert len(sizes) == -(-LONG // (BUDGET - NUM_STREAMS))


def test_a_second_long_prompt_waits_for_the_first_and_not_the_streams(core) -> None:
    """Prompts share what decoding leaves; the first comes first."""
    core.add_request(ask("first", LONG // 2, 1))
    core.add_request(ask("second", LONG // 2, 2))
    order: list[str] = []
    while not {"first", "second"} <= set(order):
        outputs = core.step()
        order += [output.request_id for output in outputs if "stream" not in output.request_id]
        assert sum("stream" in output.request_id for output in outputs) == NUM_STREAMS
        assert core.runner.batches[-1].num_tokens <= BUDGET
    assert order.index("first") < order.index("second")


def test_a_step_reads_each_sequences_own_context_only(core) -> None:
    """What attention may read grows with the sum of contexts, not with the longest of the batch."""
    core.add_request(ask("long", LONG))
    for _ in range(5):
        core.step()
    for scheduled in core.runner.batches[-1].sequences:
        num_positions = scheduled.start + len(scheduled.token_ids)
        (table,) = scheduled.block_tables
        assert len(table) == -(-num_positions // 16)
    contexts = [s.start + len(s.token_ids) for s in core.runner.batches[-1].sequences]
    assert min(contexts) < 20 < 2000 < max(contexts)
