"""Putting steps on the device, and choosing their tokens there before the last ones are known.

    host     launch 1 │ launch 2, read 1, tell │ launch 3, read 2, tell │ …
    device            │ step 1                 │ step 2                 │ step 3 …

The host reads what a step chose while the device computes the next one, which was made of tokens
that never left the device. In a batch, `~i` stands for the token of the step before's row i.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import NamedTuple

from tgwui_k8s.async_contract import AsyncRunner, AsyncSampler, PendingTokens
from tgwui_k8s.contract import Batch, Logits, ModelRunner, Sampler
from tgwui_k8s.engine.request import Sequence
from tgwui_k8s.engine.scheduler import ScheduledLane
from tgwui_k8s.sampling import SamplingParams


class Ready(NamedTuple):
    """A sequence whose next token can be chosen, and where its logits are in the step's."""

    sequence: Sequence
    logits_row: int
    guidance_row: int | None


class Scored(NamedTuple):
    """A part of a prompt whose logits are wanted, and where they begin in the step's."""

    sequence: Sequence
    part: ScheduledLane
    first_row: int


@dataclass(slots=True)
class LaunchedStep:
    """A step that the runner was given, whatever the device has done of it."""

    logits: Logits
    num_tokens: int
    ready: list[Ready] = field(default_factory=list)
    scored: list[Scored] = field(default_factory=list)
    pending: PendingTokens | None = None
    """The choice for `ready`, where the step runs ahead; None where it is still to be made."""
    void: set[Sequence] = field(default_factory=set)
    """Sequences that it computed from a wrong token."""


class Launcher:
    """One runner and its sampler."""

    def __init__(self, runner: ModelRunner, sampler: Sampler) -> None:
        """Steps run ahead where the runner says so."""
        self._runner = runner
        self._async_runner: AsyncRunner | None = None
        self._async_sampler: AsyncSampler | None = None
        if isinstance(runner, AsyncRunner) and runner.runs_ahead:
            if not isinstance(sampler, AsyncSampler):
                raise TypeError(f"{type(sampler).__name__} cannot choose ahead of the host")
            self._async_runner, self._async_sampler = runner, sampler

    def can_run_ahead(self, params: SamplingParams) -> bool:
        """True if a request's next step can be launched before its last token is known."""
        return self._async_sampler is not None and self._async_sampler.can_run_ahead(params)

    def launch(self, batch: Batch, before: LaunchedStep | None) -> LaunchedStep:
        """Give the runner a batch; `before` is the step that has not been read yet."""
        if self._async_runner is None:
            return LaunchedStep(self._runner.execute(batch), batch.num_tokens)
        pending = None if before is None else before.pending
        previous = None if pending is None else pending.token_ids
        return LaunchedStep(self._async_runner.launch(batch, previous), batch.num_tokens)

    def choose(self, step: LaunchedStep) -> bool:
        """Begin to choose the step's tokens, if all of its rows can run ahead."""
        if self._async_sampler is None or step.scored:
            return False
        if not all(ready.sequence.can_run_ahead for ready in step.ready):
            return False
        step.pending = self._async_sampler.launch(
            step.logits,
            [ready.sequence.sampling for ready in step.ready],
            [ready.logits_row for ready in step.ready],
            [ready.guidance_row for ready in step.ready],
        )
        return True
