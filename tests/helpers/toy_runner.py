"""A model whose next token is a pure function of what it can read back from its KV blocks.

Every block slot stores the token id that was "computed" into it. Logits are drawn from a hash of
the tokens that a query may see, read through the block tables: a wrong table, a block handed out
twice or a stale prefix changes the text, so plain equality with `expected_tokens` is an oracle.
"""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from typing import Any

import numpy as np

from tgwui_k8s.async_contract import PendingTokens
from tgwui_k8s.contract import (
    Batch,
    KVGroup,
    KVLayout,
    ModelInfo,
    SampledToken,
    SamplingRow,
)
from tgwui_k8s.engine.core import EngineCore
from tgwui_k8s.engine.messages import EngineSettings
from tgwui_k8s.engine.sampler import NumpySampler
from tgwui_k8s.sampling import SamplingParams

VOCAB_SIZE = 40
EOS = 0


def toy_logits(visible: Sequence[Sequence[int]]) -> np.ndarray:
    """Logits [VOCAB_SIZE] for a query that sees these tokens, one list per KV group."""
    key = zlib.crc32(repr([list(tokens) for tokens in visible]).encode())
    return (np.random.default_rng(key).normal(size=VOCAB_SIZE) * 3).astype(np.float32)


def visible_tokens(token_ids: Sequence[int], windows: Sequence[int | None]) -> list[list[int]]:
    """What the last of `token_ids` attends to in each group."""
    return [list(token_ids if window is None else token_ids[-window:]) for window in windows]


class ToyRunner:
    """contract.ModelRunner over `toy_logits`."""

    def __init__(
        self,
        *,
        num_blocks: int = 64,
        block_size: int = 4,
        windows: tuple[int | None, ...] = (None,),
        max_model_len: int = 128,
        **layout: bool,
    ) -> None:
        self.layout = KVLayout(
            block_size=block_size,
            groups=tuple(KVGroup(num_blocks=num_blocks, window=window) for window in windows),
            **layout,
        )
        self.info = ModelInfo(
            loader="toy",
            architecture="Toy",
            dtype="float32",
            device="cpu",
            max_model_len=max_model_len,
            vocab_size=VOCAB_SIZE,
            eos_token_ids=(EOS,),
        )
        self.sampler = None
        self.windows = windows
        self.batches: list[Batch] = []
        self._slots = [np.full((num_blocks, block_size), -1) for _ in windows]

    def execute(self, batch: Batch) -> np.ndarray:
        """Write the tokens into their slots, then read back what each query sees."""
        assert batch.num_tokens == sum(len(s.token_ids) for s in batch.sequences)
        self.batches.append(batch)
        rows = []
        for scheduled in batch.sequences:
            self._write(scheduled.start, scheduled.token_ids, scheduled.block_tables)
        for scheduled in batch.sequences:
            stop = scheduled.start + len(scheduled.token_ids)
            for position in range(stop - scheduled.num_logits, stop):
                rows.append(toy_logits(self._read(position, scheduled.block_tables)))
        return np.stack(rows) if rows else np.zeros((0, VOCAB_SIZE), np.float32)

    def warm_up(self) -> None:
        """Nothing to warm."""

    def close(self) -> None:
        """Nothing to free."""

    def _write(self, start: int, token_ids: Sequence[int], tables: tuple[list[int], ...]) -> None:
        for slots, table in zip(self._slots, tables, strict=True):
            for position, token_id in enumerate(token_ids, start):
                block = table[position // self.layout.block_size]
                assert block >= 0
                slots[block, position % self.layout.block_size] = token_id

    def _read(self, position: int, tables: tuple[list[int], ...]) -> list[list[int]]:
        visible = []
        for slots, table, window in zip(self._slots, tables, self.windows, strict=True):
            first = 0 if window is None else max(0, position - window + 1)
            tokens = []
            for index in range(first, position + 1):
                block = table[index // self.layout.block_size]
                assert block >= 0, "a block inside the window was given back"
                tokens.append(int(slots[block, index % self.layout.block_size]))
            visible.append(tokens)
        return visible


class ToyDevice(ToyRunner):
    """async_contract.AsyncRunner over the same model; says in `events` what it was told when."""

    runs_ahead = True

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.sampler = ToyDeviceSampler()
        self.events = self.sampler.events

    def launch(self, batch: Batch, previous: np.ndarray | None) -> np.ndarray:
        """Put what the step before chose where the batch has `~i`, and compute."""
        self.events.append("launch")
        for scheduled in batch.sequences:
            scheduled.token_ids = [
                token_id if token_id >= 0 else int(previous[~token_id])
                for token_id in scheduled.token_ids
            ]
        return self.execute(batch)


class ToyDeviceSampler(NumpySampler):
    """Chooses at once, but lets only those know who read."""

    def __init__(self) -> None:
        super().__init__()
        self.events: list[str] = []

    def launch(self, *arguments: Any) -> ToyDeviceSampler.Pending:
        """See `AsyncSampler.launch`."""
        return self.Pending(super().launch(*arguments), self.events)

    class Pending:
        """See `PendingTokens`."""

        def __init__(self, launched: PendingTokens, events: list[str]) -> None:
            self.token_ids = launched.token_ids
            self._launched = launched
            self._events = events

        def read(self) -> list[SampledToken]:
            """What was chosen."""
            self._events.append("read")
            return self._launched.read()


def make_core(
    runner: ToyRunner,
    *,
    max_num_seqs: int = 8,
    max_num_batched_tokens: int = 16,
    max_waiting_requests: int = 1000,
    **kwargs: object,
) -> EngineCore:
    """An engine core over a toy runner, with small limits."""
    settings = EngineSettings(
        max_num_seqs=max_num_seqs,
        max_num_batched_tokens=max_num_batched_tokens,
        max_waiting_requests=max_waiting_requests,
    )
    return EngineCore(runner, settings, **kwargs)


def expected_tokens(
    prompt: Sequence[int],
    params: SamplingParams,
    *,
    choice: int = 0,
    windows: tuple[int | None, ...] = (None,),
    max_model_len: int = 128,
    negative_prompt: Sequence[int] = (),
) -> list[int]:
    """What a request gives when it is computed alone, without any engine."""
    row = SamplingRow(
        params=params,
        eos_token_ids=(EOS,),
        prompt_token_ids=tuple(prompt),
        output_token_ids=[],
        choice=choice,
    )
    sampler = NumpySampler()
    outputs = row.output_token_ids
    while len(outputs) < params.max_tokens:
        logits = [toy_logits(visible_tokens([*prompt, *outputs], windows))]
        if negative_prompt:
            logits.append(toy_logits(visible_tokens([*negative_prompt, *outputs], windows)))
        guidance = [1 if negative_prompt else None]
        token = sampler.sample(np.stack(logits), [row], [0], guidance)[0].token_id
        outputs.append(token)
        if token == EOS and not params.ignore_eos and len(outputs) > params.min_tokens:
            break
        if token in params.stop_token_ids and len(outputs) > params.min_tokens:
            break
        if len(prompt) + len(outputs) >= max_model_len:
            break
    return outputs


def run_to_end(core: EngineCore, *, max_steps: int = 5000) -> dict[tuple[str, int], list[int]]:
    """Step until nothing is left; tokens by (request id, choice)."""
    tokens: dict[tuple[str, int], list[int]] = {}
    steps = 0
    while core.has_work:
        for output in core.step():
            for delta in output.deltas:
                tokens.setdefault((output.request_id, delta.index), []).extend(delta.token_ids)
        core.check_integrity()
        steps += 1
        assert steps < max_steps, "the engine does not come to an end"
    return tokens
