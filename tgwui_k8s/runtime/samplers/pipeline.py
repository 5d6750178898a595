"""Logits and rows to tokens, whatever array library computes.

Rows that share an order go through together; a sampler sees only the rows it acts on. No row
depends on another.

A choice can fail: a sampler may ban all that those before it left, bans may cover every token,
the model may return NaN. Such a row is tried again as greedy, then with nothing but its grammar
mask; where it has no finite logit even so, its token id is -1. No row is ever sampled outside its
mask.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from typing import Any

from tgwui_k8s.contract import Logits, SampledToken, SamplingRow, TopLogprobs
from tgwui_k8s.runtime.samplers.choosing import Attempt, Chooser, Job, group_jobs
from tgwui_k8s.runtime.samplers.kernels import Array, Arrival, Candidates, Kernels
from tgwui_k8s.runtime.samplers.plan import RowPlan, can_run_ahead
from tgwui_k8s.runtime.samplers.report import (
    Choice,
    Chosen,
    certain,
    fields_of,
    read_choice,
    read_top,
)
from tgwui_k8s.sampling import SamplingParams

FAILED = SampledToken(-1)
"""The token of a row without a single finite logit."""


@dataclass(frozen=True, slots=True)
class LaunchedRows:
    """A first attempt at some rows that is under way; see `async_contract.PendingTokens`."""

    token_ids: Array
    _finish: Callable[[], list[SampledToken]]

    def read(self) -> list[SampledToken]:
        """Wait for the choice, and try the rows again that have none."""
        return self._finish()


class RowSampler:
    """The sampler of the contract, on one array library's kernels."""

    def __init__(self, kernels: Kernels, guard: Callable[[], AbstractContextManager[Any]]) -> None:
        """`guard` makes the context in which the library has to compute."""
        self._kernels = kernels
        self._chooser = Chooser(kernels)
        self._guard = guard

    def sample(
        self,
        logits: Logits,
        rows: Sequence[SamplingRow],
        indices: Sequence[int],
        guidance_indices: Sequence[int | None],
    ) -> list[SampledToken]:
        """Choose the next token of every row; see `Sampler.sample`. `logits` stay as they are."""
        jobs = _make_jobs(logits, rows, indices, guidance_indices)
        sampled: dict[int, SampledToken] = {}
        self._try(logits, jobs, Attempt, sampled)
        return [sampled.get(i, FAILED) for i in range(len(jobs))]

    def can_run_ahead(self, params: SamplingParams) -> bool:
        """See `AsyncSampler.can_run_ahead`."""
        return can_run_ahead(params)

    def launch(
        self,
        logits: Logits,
        rows: Sequence[SamplingRow],
        indices: Sequence[int],
        guidance_indices: Sequence[int | None],
    ) -> LaunchedRows:
        """Begin to choose the next token of every row; see `AsyncSampler.launch`."""
        jobs = _make_jobs(logits, rows, indices, guidance_indices)
        with self._guard():
            choices = [
                choice
                for part in self._passes(logits, range(len(jobs)))
                for choice in self._choose_part(logits, jobs, part, Attempt.AS_ASKED)
            ]
            parts = [choice.token_ids for choice in choices]
            places = [job for choice in choices for job in choice.jobs]
            token_ids = self._kernels.in_order(parts, places) if jobs else None
            arrival = self._send(choices, logits)

        def finish() -> list[SampledToken]:
            sampled: dict[int, SampledToken] = {}
            _read(choices, arrival, jobs, sampled)
            retried: dict[int, SampledToken] = dict(sampled)
            self._try(logits, jobs, (Attempt.GREEDY, Attempt.UNBANNED), retried)
            return [
                sampled[i] if i in sampled else replace(retried.get(i, FAILED), was_retried=True)
                for i in range(len(jobs))
            ]

        return LaunchedRows(token_ids, finish)

    def needs_replay(self, params: SamplingParams) -> bool:
        """True for Mirostat: its `mu` depends on past distributions."""
        return params.mirostat_mode == 2 and not params.is_greedy

    def replay(self, logits: Logits, row: SamplingRow, token_ids: Sequence[int]) -> None:
        """Bring `row.state` to where it was after `token_ids`; see `Sampler.replay`.

        Grammar masks and guidance of those steps are not known here: with them, the replay is an
        approximation.
        """
        outputs = list(row.output_token_ids)
        shadow = replace(row, output_token_ids=outputs, allowed_token_ids=None)
        for index, token_id in enumerate(token_ids):
            (job,) = _make_jobs(logits, [shadow], [index], [None])
            with self._guard():
                prepared = self._chooser.prepare(logits, [job], Attempt.AS_ASKED)
                candidates = self._chooser.run_samplers(prepared, [job], greedy=False)
                logprobs = self._kernels.logprobs_of(candidates, [token_id])
                (fetched,) = self._kernels.send([logprobs], logits)()
            job.plan.observe(float(fetched[0]))
            outputs.append(token_id)

    def prompt_logprobs(
        self, logits: Logits, target_token_ids: Sequence[int], num_top: int
    ) -> list[TopLogprobs]:
        """Log probabilities of given tokens, one per row of `logits`."""
        reports: list[TopLogprobs] = []
        for part in self._passes(logits, range(len(target_token_ids))):
            targets = [target_token_ids[i] for i in part]
            with self._guard():
                taken = self._kernels.take(logits, part)
                top = self._kernels.top_tokens(Candidates(taken), targets, num_top)
                rows = read_top(self._kernels.send(fields_of(top), logits)())
            for fetched, target in zip(rows, targets, strict=True):
                reports.append(fetched.as_logprobs(target, num_top))
        return reports

    # ------------------------------------------------------------------------------- internals

    def _try(
        self,
        logits: Logits,
        jobs: list[Job],
        attempts: Iterable[Attempt],
        sampled: dict[int, SampledToken],
    ) -> None:
        """Add to `sampled` what the attempts find for jobs that it lacks."""
        for attempt in attempts:
            left = [i for i in range(len(jobs)) if i not in sampled]
            for part in self._passes(logits, left):
                with self._guard():
                    choices = self._choose_part(logits, jobs, part, attempt)
                    _read(choices, self._send(choices, logits), jobs, sampled)

    def _passes(self, logits: Logits, members: Sequence[int]) -> Iterator[list[int]]:
        """As many at once as memory allows."""
        step = self._kernels.rows_per_pass(logits.shape[-1])
        for first in range(0, len(members), step):
            yield list(members[first : first + step])

    def _choose_part(
        self, logits: Logits, jobs: list[Job], part: list[int], attempt: Attempt
    ) -> list[Choice]:
        return [
            self._chooser.choose(logits, [jobs[i] for i in members], members, attempt)
            for members in group_jobs(jobs, part, attempt)
        ]

    def _send(self, choices: list[Choice], logits: Logits) -> Arrival:
        return self._kernels.send([array for choice in choices for array in choice.arrays], logits)


def _make_jobs(
    logits: Logits,
    rows: Sequence[SamplingRow],
    indices: Sequence[int],
    guidance_indices: Sequence[int | None],
) -> list[Job]:
    vocab_size = logits.shape[-1]
    return [
        Job(row, RowPlan.of(row, vocab_size), index, guidance_index, row.position)
        for row, index, guidance_index in zip(rows, indices, guidance_indices, strict=True)
    ]


def _read(
    choices: list[Choice], arrival: Arrival, jobs: list[Job], sampled: dict[int, SampledToken]
) -> None:
    """Wait for the choices, and add to `sampled` those that are any good."""
    fetched = iter(arrival())
    for choice in choices:
        for chosen in read_choice(choice, fetched):
            if math.isfinite(chosen.score):
                sampled[chosen.job] = _settle(jobs[chosen.job].plan, chosen, choice.is_drawn)


def _settle(plan: RowPlan, chosen: Chosen, is_drawn: bool) -> SampledToken:
    """Put the token into the contract's form and let the plan learn from the draw."""
    if is_drawn:
        plan.observe(chosen.score)
    num_top = plan.params.logprobs
    if num_top is None:
        return SampledToken(chosen.token_id)
    if chosen.top is None:
        return SampledToken(chosen.token_id, certain(chosen.token_id))
    return SampledToken(chosen.token_id, chosen.top.as_logprobs(chosen.token_id, num_top))
