"""Choosing for rows that go the same way: one attempt, as array operations of any library.

    take rows → guidance → grammar mask → logit bias and bans       the row's logits
              → the row's samplers in its order                     its candidates
              → the most likely one, or a draw by its own noise     its token

Nothing here waits for a device: what was chosen lies where the logits do.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import IntEnum
from typing import Any

import numpy as np

from tgwui_k8s.contract import Logits, SamplingRow
from tgwui_k8s.runtime.samplers.kernels import Array, Candidates, Kernels
from tgwui_k8s.runtime.samplers.noise import Use, uniform
from tgwui_k8s.runtime.samplers.plan import EDITS, SCALING, TRUNCATIONS, Edit, RowPlan
from tgwui_k8s.runtime.samplers.report import Choice


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
    position: int
    """The row's when the job was made: the row may go on before its choice is read."""

    @property
    def guidance_scale(self) -> float:
        """1 where there is no guidance."""
        return 1.0 if self.guidance_index is None else self.plan.params.guidance_scale

    @property
    def noise(self) -> float:
        """The number that decides the draw."""
        return uniform(self.plan.params.seed, self.row.choice, self.position, Use.TOKEN)


def group_jobs(jobs: list[Job], part: list[int], attempt: Attempt) -> list[list[int]]:
    """Jobs that can go together: the same order, and the same need of the whole vocabulary."""
    groups: dict[tuple[object, ...], list[int]] = {}
    for i in part:
        plan = jobs[i].plan
        greedy = attempt > Attempt.AS_ASKED or plan.params.is_greedy
        key = (greedy, not greedy and plan.truncates, not greedy and plan.has_few, plan.order)
        groups.setdefault(key, []).append(i)
    return list(groups.values())


class Chooser:
    """One attempt at a group of rows, on one array library's kernels."""

    def __init__(self, kernels: Kernels) -> None:
        self._kernels = kernels

    def choose(
        self, logits: Logits, group: list[Job], members: list[int], attempt: Attempt
    ) -> Choice:
        """Choose for rows of one of the groups; `members` are their numbers in the step."""
        prepared = self.prepare(logits, group, attempt)
        if attempt > Attempt.AS_ASKED or group[0].plan.params.is_greedy:
            if attempt < Attempt.UNBANNED:
                self.run_samplers(prepared, group, greedy=True)
            choice = Choice(members, *self._kernels.argmax(prepared), is_drawn=False)
        else:
            self._kernels.empty_broken(prepared)
            candidates = self.run_samplers(prepared, group, greedy=False)
            drawn = self._kernels.draw(candidates, [job.noise for job in group])
            choice = Choice(members, *drawn, is_drawn=True)
            wanting = _wanting_logprobs(group, after_sampling=True)
            if wanting:
                self._report(choice, self._part(candidates, wanting), group, wanting)
        wanting = _wanting_logprobs(group, after_sampling=False)
        if wanting:
            raw = self._take_guided(logits, [group[i] for i in wanting])
            self._report(choice, Candidates(raw), group, wanting)
        return choice

    def prepare(self, logits: Logits, group: list[Job], attempt: Attempt) -> Array:
        """The rows' logits before their samplers: guided, masked, biased, bans taken out."""
        prepared = self._take_guided(logits, group)
        masked = [i for i, job in enumerate(group) if job.row.allowed_token_ids is not None]
        if masked:
            masks = [group[i].row.allowed_token_ids for i in masked]
            self._kernels.restrict(prepared, masked, masks)
        if attempt < Attempt.UNBANNED:
            everyone = list(range(len(group)))
            biases = [job.plan.bias for job in group]
            bans = [job.plan.bans(job.position) for job in group]
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

    def run_samplers(self, prepared: Array, group: list[Job], *, greedy: bool) -> Candidates:
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
                is_bounded = name == "top_k" and group[0].plan.has_few
                candidates = self._kernels.compact(
                    candidates, _largest_k(group) if is_bounded else None
                )
        return candidates

    def _apply(self, name: str, candidates: Candidates, rows: list[int], group: list[Job]) -> None:
        """Run one sampler over the rows it acts on; the others stay untouched."""
        jobs = [group[i] for i in rows]
        part = candidates if len(rows) == len(group) else self._part(candidates, rows)
        arguments: list[Any] = [
            *self._kernels.columns(_parameters(name, [job.plan for job in jobs]), part.logits)
        ]
        if name == "xtc":
            protected = [job.row.eos_token_ids for job in jobs]
            arguments.append(self._kernels.positions_of(part, protected))
        elif name == "top_k":
            arguments.append(_largest_k(jobs))
        self._kernels.samplers[name](part.logits, *arguments)
        if part is not candidates:
            candidates.logits[self._kernels.index(rows, part.logits)] = part.logits

    def _part(self, candidates: Candidates, rows: list[int]) -> Candidates:
        """A copy of some rows."""
        index = self._kernels.index(rows, candidates.logits)
        token_ids = candidates.token_ids
        return Candidates(candidates.logits[index], None if token_ids is None else token_ids[index])

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
        token_ids = choice.token_ids[self._kernels.index(wanting, candidates.logits)]
        choice.reported.append(wanting)
        choice.tops.append(self._kernels.top_tokens(candidates, token_ids, num_top))


def _largest_k(jobs: list[Job]) -> int:
    return max(job.plan.params.top_k for job in jobs)


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
