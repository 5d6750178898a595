"""Logits and rows to tokens, whatever array library computes.

    take rows → guidance → grammar mask → logit bias and bans       the row's logits
              → the row's samplers in its order                     its candidates
              → the most likely one, or a draw by its own noise     its token

Rows that share an order go through together; a sampler sees only the rows it acts on. No row
depends on another.

A choice can fail: a sampler may ban all that those before it left, bans may cover every token,
the model may return NaN. Such a row is tried again as greedy, then with nothing but its grammar
mask; where it has no finite logit even so, its token id is -1. No row is ever sampled outside its
mask.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from enum import IntEnum

import numpy as np

from tgwui_k8s.contract import Logits, SampledToken, SamplingRow, TopLogprobs
from tgwui_k8s.runtime.samplers.kernels import Array, Candidates, Kernels
from tgwui_k8s.runtime.samplers.noise import Use, uniform
from tgwui_k8s.runtime.samplers.plan import EDITS, SCALING, TRUNCATIONS, Edit, RowPlan
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


class Attempt(IntEnum):
    """How much of what a row asks for is honoured."""

    AS_ASKED = 0
    GREEDY = 1
    UNBANNED = 2


@dataclass(frozen=True, slots=True)
class Job:
    """One row on its way through the pipeline."""

    row: SamplingRow
    plan: RowPlan
    index: int
    guidance_index: int | None

    @property
    def guidance_scale(self) -> float:
        """1 where there is no guidance."""
        return 1.0 if self.guidance_index is None else self.plan.params.guidance_scale

    @property
    def noise(self) -> float:
        """The number that decides the draw."""
        return uniform(self.plan.params.seed, self.row.choice, self.row.position, Use.TOKEN)


class RowSampler:
    """The sampler of the contract, on one array library's kernels."""

    def __init__(self, kernels: Kernels) -> None:
        self._kernels = kernels

    def sample(
        self,
        logits: Logits,
        rows: Sequence[SamplingRow],
        indices: Sequence[int],
        guidance_indices: Sequence[int | None],
    ) -> list[SampledToken]:
        """Choose the next token of every row; see `Sampler.sample`. `logits` stay as they are."""
        vocab_size = logits.shape[-1]
        jobs = [
            Job(row, RowPlan.of(row, vocab_size), index, guidance_index)
            for row, index, guidance_index in zip(rows, indices, guidance_indices, strict=True)
        ]
        sampled: dict[int, SampledToken] = {}
        step = self._kernels.rows_per_pass(vocab_size)
        for attempt in Attempt:
            left = [i for i in range(len(jobs)) if i not in sampled]
            for first in range(0, len(left), step):
                self._sample_part(logits, jobs, left[first : first + step], attempt, sampled)
        return [sampled.get(i, FAILED) for i in range(len(jobs))]

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
            job = Job(shadow, RowPlan.of(shadow, logits.shape[-1]), index, None)
            prepared = self._prepare(logits, [job], Attempt.AS_ASKED)
            candidates = self._run_samplers(prepared, [job], greedy=False)
            logprobs = self._kernels.logprobs_of(candidates, [token_id])
            job.plan.observe(float(self._kernels.fetch([logprobs])[0][0]))
            outputs.append(token_id)

    def prompt_logprobs(
        self, logits: Logits, target_token_ids: Sequence[int], num_top: int
    ) -> list[TopLogprobs]:
        """Log probabilities of given tokens, one per row of `logits`."""
        reports: list[TopLogprobs] = []
        step = self._kernels.rows_per_pass(logits.shape[-1])
        for first in range(0, len(target_token_ids), step):
            targets = target_token_ids[first : first + step]
            taken = self._kernels.take(logits, range(first, first + len(targets)))
            top = self._kernels.top_tokens(Candidates(taken), targets, num_top)
            rows = read_top(self._kernels.fetch(fields_of(top)))
            for fetched, target in zip(rows, targets, strict=True):
                reports.append(fetched.as_logprobs(target, num_top))
        return reports

    # ------------------------------------------------------------------------------ one attempt

    def _sample_part(
        self,
        logits: Logits,
        jobs: list[Job],
        part: list[int],
        attempt: Attempt,
        sampled: dict[int, SampledToken],
    ) -> None:
        """Add to `sampled` what this attempt finds for the jobs of `part`."""
        choices = [
            self._choose(logits, [jobs[i] for i in members], members, attempt)
            for members in _groups(jobs, part, attempt)
        ]
        arrays = [array for choice in choices for array in choice.arrays]
        fetched = iter(self._kernels.fetch(arrays))
        for choice in choices:
            for chosen in read_choice(choice, fetched):
                if math.isfinite(chosen.score):
                    sampled[chosen.job] = _settle(jobs[chosen.job].plan, chosen, choice.is_drawn)

    def _choose(
        self, logits: Logits, group: list[Job], members: list[int], attempt: Attempt
    ) -> Choice:
        """Choose for rows that go the same way."""
        prepared = self._prepare(logits, group, attempt)
        if attempt > Attempt.AS_ASKED or group[0].plan.params.is_greedy:
            if attempt < Attempt.UNBANNED:
                self._run_samplers(prepared, group, greedy=True)
            choice = Choice(members, *self._kernels.argmax(prepared), is_drawn=False)
        else:
            self._kernels.empty_broken(prepared)
            candidates = self._run_samplers(prepared, group, greedy=False)
            drawn = self._kernels.draw(candidates, [job.noise for job in group])
            choice = Choice(members, *drawn, is_drawn=True)
            wanting = _wanting_logprobs(group, after_sampling=True)
            if wanting:
                self._report(choice, _part(candidates, wanting), group, wanting)
        wanting = _wanting_logprobs(group, after_sampling=False)
        if wanting:
            raw = self._take_guided(logits, [group[i] for i in wanting])
            self._report(choice, Candidates(raw), group, wanting)
        return choice

    def _prepare(self, logits: Logits, group: list[Job], attempt: Attempt) -> Array:
        """The rows' logits before their samplers: guided, masked, biased, bans taken out."""
        prepared = self._take_guided(logits, group)
        masked = [i for i, job in enumerate(group) if job.row.allowed_token_ids is not None]
        if masked:
            masks = [group[i].row.allowed_token_ids for i in masked]
            self._kernels.restrict(prepared, masked, masks)
        if attempt < Attempt.UNBANNED:
            everyone = list(range(len(group)))
            biases = [job.plan.bias for job in group]
            bans = [job.plan.bans(job.row.position) for job in group]
            self._edit(Candidates(prepared), everyone, biases, scaling=False)
            self._edit(Candidates(prepared), everyone, bans, scaling=False)
        return prepared

    def _take_guided(self, logits: Logits, group: list[Job]) -> Array:
        """Copies of the model's logits, guided where a row has a negative prompt."""
        taken = self._kernels.take(logits, [job.index for job in group])
        guided = [i for i, job in enumerate(group) if job.guidance_scale != 1.0]
        if guided:
            indices = [group[i].guidance_index or 0 for i in guided]
            scales = [group[i].guidance_scale for i in guided]
            self._kernels.guide(taken, guided, self._kernels.take(logits, indices), scales)
        return taken

    def _run_samplers(self, prepared: Array, group: list[Job], *, greedy: bool) -> Candidates:
        """Put the group through its samplers, each over the rows it acts on."""
        acting: dict[str, list[int]] = {}
        for i, job in enumerate(group):
            for name in job.plan.edits if greedy else job.plan.active:
                acting.setdefault(name, []).append(i)
        if "xtc" in acting:
            acting["xtc"] = [i for i in acting["xtc"] if group[i].plan.xtc_acts(group[i].row)]
        names = [name for name in group[0].plan.order if acting.get(name)]
        candidates = Candidates(prepared)
        for name in names:
            rows = acting[name]
            if name in EDITS:
                edits = [group[i].plan.edit(name) for i in rows]
                self._edit(candidates, rows, edits, scaling=name in SCALING)
            else:
                self._apply(name, candidates, rows, group)
            if name in TRUNCATIONS:
                candidates = self._kernels.compact(candidates)
        return candidates

    def _apply(self, name: str, candidates: Candidates, rows: list[int], group: list[Job]) -> None:
        """Run one sampler over the rows it acts on; the others stay untouched."""
        part = candidates if len(rows) == len(group) else _part(candidates, rows)
        plans = [group[i].plan for i in rows]
        columns = list(self._kernels.columns(_parameters(name, plans), part.logits))
        if name == "xtc":
            protected = [group[i].row.eos_token_ids for i in rows]
            columns.append(self._kernels.positions_of(part, protected))
        self._kernels.samplers[name](part.logits, *columns)
        if part is not candidates:
            candidates.logits[rows] = part.logits

    def _edit(
        self, candidates: Candidates, rows: list[int], edits: Sequence[Edit], *, scaling: bool
    ) -> None:
        """Apply one edit to each of these rows."""
        sizes = [len(edit.token_ids) for edit in edits]
        if any(sizes):
            apply = self._kernels.scale_at if scaling else self._kernels.add_at
            apply(
                candidates,
                np.repeat(np.array(rows, np.int64), sizes),
                np.concatenate([edit.token_ids for edit in edits]),
                np.concatenate([edit.values for edit in edits]),
            )

    def _report(
        self, choice: Choice, candidates: Candidates, group: list[Job], wanting: list[int]
    ) -> None:
        """Add the log probabilities of the chosen and the most likely tokens."""
        num_top = max(group[i].plan.params.logprobs or 0 for i in wanting)
        token_ids = choice.token_ids[wanting]
        choice.reported.append(wanting)
        choice.tops.append(self._kernels.top_tokens(candidates, token_ids, num_top))


def _groups(jobs: list[Job], part: list[int], attempt: Attempt) -> list[list[int]]:
    """Jobs that can go together: the same order, and the same need of the whole vocabulary."""
    groups: dict[tuple[object, ...], list[int]] = {}
    for i in part:
        plan = jobs[i].plan
        greedy = attempt > Attempt.AS_ASKED or plan.params.is_greedy
        key = (greedy, plan.truncates and not greedy, plan.order)
        groups.setdefault(key, []).append(i)
    return list(groups.values())


def _part(candidates: Candidates, rows: list[int]) -> Candidates:
    """A copy of some rows."""
    token_ids = candidates.token_ids
    return Candidates(candidates.logits[rows], None if token_ids is None else token_ids[rows])


def _wanting_logprobs(group: list[Job], *, after_sampling: bool) -> list[int]:
    return [
        i
        for i, job in enumerate(group)
        if job.plan.params.logprobs is not None
        and job.plan.params.logprobs_after_sampling is after_sampling
    ]


def _parameters(name: str, plans: list[RowPlan]) -> list[list[float]]:
    """What a sampler takes: one list per parameter, one number per row."""
    if name == "mirostat":
        return [[plan.mirostat_mu for plan in plans]]
    fields: tuple[str, ...] = {
        "dynamic_temperature": ("dynatemp_low", "dynatemp_high", "dynatemp_exponent"),
        "quadratic_sampling": ("smoothing_factor", "smoothing_curve"),
        "xtc": ("xtc_threshold",),
    }.get(name, (name,))
    return [[getattr(plan.params, field) for plan in plans] for field in fields]


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
