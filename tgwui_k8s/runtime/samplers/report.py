"""What was chosen, while it is on the device, and how it is read once it has been fetched."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from numpy.typing import NDArray

from tgwui_k8s.contract import TopLogprobs
from tgwui_k8s.runtime.samplers.kernels import Array, TopTokens

LOWEST_LOGPROB = -9999.0
"""Stands for "very unlikely", as in OpenAI's API: no -inf and no NaN ever reaches JSON."""

_FIELDS_OF_TOP = 4


@dataclass(slots=True)
class Choice:
    """What was chosen for a group of rows.

    `scores` are finite where the choice is good: a logit (most likely token) or a log
    probability (drawn token). Each report is for some of the rows, by position in the group.
    """

    jobs: list[int]
    token_ids: Array
    scores: Array
    is_drawn: bool
    reported: list[list[int]] = field(default_factory=list)
    tops: list[TopTokens] = field(default_factory=list)

    @property
    def arrays(self) -> list[Array]:
        """Everything that has to be fetched."""
        return [self.token_ids, self.scores, *(a for top in self.tops for a in fields_of(top))]


@dataclass(frozen=True, slots=True)
class Chosen:
    """The choice for one row, on the host."""

    job: int
    token_id: int
    score: float
    top: FetchedTop | None


@dataclass(frozen=True, slots=True)
class FetchedTop:
    """One row of `TopTokens` on the host."""

    logprob: float
    rank: int
    token_ids: list[Any]
    logprobs: list[Any]

    def as_logprobs(self, token_id: int, num_top: int) -> TopLogprobs:
        """The contract's form: tokens that cannot come are left out, the token itself is in."""
        pairs = zip(self.token_ids[:num_top], self.logprobs[:num_top], strict=True)
        listed = {int(other): value for other, value in pairs if math.isfinite(value)}
        own = self.logprob if math.isfinite(self.logprob) else LOWEST_LOGPROB
        own = listed.setdefault(token_id, own)
        return TopLogprobs(token_id, own, self.rank, tuple(listed), tuple(listed.values()))


def fields_of(top: TopTokens) -> list[Array]:
    """The arrays to be fetched, in the order in which `read_top` takes them."""
    return [top.logprobs, top.ranks, top.top_token_ids, top.top_logprobs]


def read_top(numbers: Sequence[NDArray[Any]]) -> list[FetchedTop]:
    """The rows of one fetched `TopTokens`."""
    logprobs, ranks, token_ids, top_logprobs = (array.tolist() for array in numbers)
    return [
        FetchedTop(logprob, int(rank), ids, values)
        for logprob, rank, ids, values in zip(logprobs, ranks, token_ids, top_logprobs, strict=True)
    ]


def read_choice(choice: Choice, fetched: Iterator[NDArray[Any]]) -> Iterator[Chosen]:
    """The choice for every row of the group, from its fetched `arrays`."""
    token_ids, scores = next(fetched).tolist(), next(fetched).tolist()
    tops: dict[int, FetchedTop] = {}
    for positions in choice.reported:
        rows = read_top([next(fetched) for _ in range(_FIELDS_OF_TOP)])
        tops.update(zip(positions, rows, strict=True))
    for position, job in enumerate(choice.jobs):
        yield Chosen(job, int(token_ids[position]), scores[position], tops.get(position))


def certain(token_id: int) -> TopLogprobs:
    """The report of a choice that left nothing to chance."""
    return TopLogprobs(token_id, 0.0, 1, (token_id,), (0.0,))
