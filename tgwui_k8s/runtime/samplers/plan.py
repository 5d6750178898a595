"""What the parameters of one row mean for the sampler: which samplers act, in which order, on what.

A plan lives in `SamplingRow.state` and lies wholly on the host. It follows the outputs as they
grow, and is made anew from prompt and outputs where it is missing or ahead of them; Mirostat's
`mu` alone needs a replay then.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from tgwui_k8s.contract import SamplingRow
from tgwui_k8s.runtime.samplers.history import (
    IntArray,
    SuffixMatches,
    TokenCounts,
    distinct_tokens,
    longest_by_token,
)
from tgwui_k8s.runtime.samplers.kernels import MOST_COMPACT
from tgwui_k8s.runtime.samplers.noise import Use, uniform
from tgwui_k8s.sampling import SAMPLER_ORDER, SamplingParams

MAX_DRY_PENALTY = 1e4
"""Nothing is less likely than exp(-10,000); a larger penalty would only cost precision."""

_STATE_KEY = "plan"

_IS_ACTIVE: dict[str, Callable[[SamplingParams], bool]] = {
    "repetition_penalty": lambda params: params.repetition_penalty != 1.0,
    "presence_penalty": lambda params: params.presence_penalty != 0.0,
    "frequency_penalty": lambda params: params.frequency_penalty != 0.0,
    "dry": lambda params: params.dry_multiplier != 0.0,
    "top_n_sigma": lambda params: params.top_n_sigma > 0.0,
    "temperature": lambda params: params.temperature != 1.0,
    "dynamic_temperature": lambda params: params.dynamic_temperature,
    "quadratic_sampling": lambda params: params.smoothing_factor > 0.0,
    "top_k": lambda params: params.top_k > 0,
    "top_p": lambda params: params.top_p < 1.0,
    "typical_p": lambda params: params.typical_p < 1.0,
    "epsilon_cutoff": lambda params: params.epsilon_cutoff > 0.0,
    "eta_cutoff": lambda params: params.eta_cutoff > 0.0,
    "tfs": lambda params: params.tfs < 1.0,
    "top_a": lambda params: params.top_a > 0.0,
    "min_p": lambda params: params.min_p > 0.0,
    "mirostat": lambda params: params.mirostat_mode == 2,
    "xtc": lambda params: params.xtc_probability > 0.0,
    "encoder_repetition_penalty": lambda params: params.encoder_repetition_penalty != 1.0,
    "no_repeat_ngram": lambda params: params.no_repeat_ngram_size > 0,
}

_TEMPERATURES = ("temperature", "dynamic_temperature", "quadratic_sampling")

EDITS = frozenset(
    {
        "repetition_penalty",
        "presence_penalty",
        "frequency_penalty",
        "dry",
        "encoder_repetition_penalty",
        "no_repeat_ngram",
    }
)
"""Samplers that change the logits of single tokens; greedy rows heed these and no others."""

_COUNTING = frozenset({"repetition_penalty", "presence_penalty", "frequency_penalty"})

SCALING = frozenset({"repetition_penalty", "encoder_repetition_penalty"})
"""Edits whose values divide positive logits and multiply negative ones; the others add."""

TRUNCATIONS = frozenset(SAMPLER_ORDER) - EDITS - frozenset(_TEMPERATURES)
"""Samplers that remove candidates."""


@dataclass(frozen=True, slots=True)
class Edit:
    """A change of single logits: `values[i]` is for the token `token_ids[i]`."""

    token_ids: IntArray
    values: NDArray[np.float64]


class RowPlan:
    """The sampler's view of one row. Get it with `RowPlan.of(row, vocab_size)`."""

    def __init__(self, row: SamplingRow, vocab_size: int) -> None:
        params = row.params
        self.params = params
        self.vocab_size = vocab_size
        self.order = sampler_order(params)
        active = [name for name in self.order if _IS_ACTIVE[name](params)]
        self.edits = tuple(name for name in active if name in EDITS)
        self.active = self.edits if params.is_greedy else tuple(active)
        self.truncates = any(name in TRUNCATIONS for name in self.active)
        self.has_few = 0 < params.top_k <= MOST_COMPACT
        self.mirostat_mu = 2.0 * params.mirostat_tau
        self.bias = _bias_edit(params, vocab_size)
        self._bans = _ban_edit(row, vocab_size, early=False)
        self._early_bans = _ban_edit(row, vocab_size, early=True)
        self._is_counting = not _COUNTING.isdisjoint(self.edits)
        boosts_prompt = "encoder_repetition_penalty" in self.edits
        self._prompt = distinct_tokens(row.prompt_token_ids if boosts_prompt else (), vocab_size)
        self._num_followed = 0
        self._remember(row)

    @staticmethod
    def of(row: SamplingRow, vocab_size: int) -> RowPlan:
        """The row's plan, brought up to its newest output."""
        plan = row.state.get(_STATE_KEY)
        if plan is None:
            plan = row.state[_STATE_KEY] = RowPlan(row, vocab_size)
        else:
            plan.follow(row)
        return plan

    def follow(self, row: SamplingRow) -> None:
        """Take in the outputs since the last step; forget what the row has not generated."""
        outputs = row.output_token_ids
        if self._num_followed > len(outputs):
            self._remember(row)
            return
        if self._is_counting:
            self._counts.append(outputs)
        for matches in self._matches.values():
            for token_id in outputs[self._num_followed :]:
                matches.append(token_id)
        self._num_followed = len(outputs)

    def bans(self, position: int) -> Edit:
        """Tokens that must not come at this position."""
        return self._early_bans if position < self.params.min_tokens else self._bans

    def edit(self, name: str) -> Edit:
        """What one of `EDITS` does to this row now."""
        makers: dict[str, Callable[[], Edit]] = {
            "repetition_penalty": self._penalize_repetition,
            "presence_penalty": self._penalize_presence,
            "frequency_penalty": self._penalize_frequency,
            "dry": self._penalize_repeated_runs,
            "encoder_repetition_penalty": self._boost_prompt,
            "no_repeat_ngram": self._ban_repeated_ngrams,
        }
        return makers[name]()

    def xtc_acts(self, row: SamplingRow) -> bool:
        """XTC's coin for this token."""
        coin = uniform(self.params.seed, row.choice, row.position, Use.XTC)
        return coin < self.params.xtc_probability

    def observe(self, logprob: float) -> None:
        """Mirostat's control step: move `mu` against the surprise of the chosen token.

        Basu et al. 2021, algorithm 2, surprise in bits. A token outside the candidates
        (possible in a replay under different numerics) moves nothing.
        """
        if self.params.mirostat_mode == 2 and math.isfinite(logprob):
            error = -logprob / math.log(2.0) - self.params.mirostat_tau
            self.mirostat_mu -= self.params.mirostat_eta * error

    # ------------------------------------------------------------------------------- the edits

    def _penalize_repetition(self) -> Edit:
        return _constant_edit(self._counts.in_context(), self.params.repetition_penalty)

    def _penalize_presence(self) -> Edit:
        return _constant_edit(self._counts.in_output()[0], -self.params.presence_penalty)

    def _penalize_frequency(self) -> Edit:
        token_ids, counts = self._counts.in_output()
        return Edit(token_ids, -self.params.frequency_penalty * counts.astype(np.float64))

    def _penalize_repeated_runs(self) -> Edit:
        """DRY: multiplier * base ** (length - allowed length), by the longest run repeated."""
        params, matches = self.params, self._matches["dry"]
        token_ids, lengths = matches.followers(max(1, params.dry_allowed_length))
        breakers = np.fromiter(matches.breakers, np.int64, len(matches.breakers))
        kept = (token_ids < self.vocab_size) & ~np.isin(token_ids, breakers)
        distinct, longest = longest_by_token(token_ids[kept], lengths[kept])
        with np.errstate(over="ignore"):
            growth = params.dry_base ** (longest - params.dry_allowed_length).astype(np.float64)
        penalties = np.clip(params.dry_multiplier * growth, -MAX_DRY_PENALTY, MAX_DRY_PENALTY)
        return Edit(distinct, -penalties)

    def _boost_prompt(self) -> Edit:
        return _constant_edit(self._prompt, 1.0 / self.params.encoder_repetition_penalty)

    def _ban_repeated_ngrams(self) -> Edit:
        least_length = self.params.no_repeat_ngram_size - 1
        token_ids = np.unique(self._matches["no_repeat_ngram"].followers(least_length)[0])
        return _constant_edit(token_ids[token_ids < self.vocab_size], -math.inf)

    # ------------------------------------------------------------------------------- its making

    def _remember(self, row: SamplingRow) -> None:
        """Build what the edits need to know from the row's tokens."""
        params = self.params
        counted = row.prompt_token_ids if self._is_counting else ()
        self._counts = TokenCounts(counted, params.repetition_penalty_range, self.vocab_size)
        if self._is_counting:
            self._counts.append(row.output_token_ids)
        self._matches = {}
        token_ids = [*row.prompt_token_ids, *row.output_token_ids]
        if "dry" in self.edits:
            self._matches["dry"] = SuffixMatches(token_ids, params.dry_sequence_breakers)
        if "no_repeat_ngram" in self.edits:
            self._matches["no_repeat_ngram"] = SuffixMatches(token_ids)
        self._num_followed = len(row.output_token_ids)


def sampler_order(params: SamplingParams) -> tuple[str, ...]:
    """All samplers in the order in which they act on this request."""
    chosen = [name for name in params.sampler_priority if name in _IS_ACTIVE]
    order = list(dict.fromkeys([*chosen, *SAMPLER_ORDER]))
    if params.temperature_last:
        order.sort(key=lambda name: name in _TEMPERATURES)
    return tuple(order)


def can_run_ahead(params: SamplingParams) -> bool:
    """True where nothing that acts on a row looks at the tokens or draws before."""
    follows = EDITS if params.is_greedy else EDITS | {"mirostat"}
    return not any(_IS_ACTIVE[name](params) for name in follows)


def _bias_edit(params: SamplingParams, vocab_size: int) -> Edit:
    bias = {i: value for i, value in params.logit_bias.items() if 0 <= i < vocab_size}
    token_ids = np.fromiter(bias.keys(), np.int64, len(bias))
    return Edit(token_ids, np.fromiter(bias.values(), np.float64, len(bias)))


def _ban_edit(row: SamplingRow, vocab_size: int, *, early: bool) -> Edit:
    """Tokens that never come, and with `early` those that would end the sequence."""
    params = row.params
    banned = set(params.banned_token_ids)
    if params.ban_eos_token:
        banned.update(row.eos_token_ids)
    if early:
        banned.update(params.stop_token_ids)
        if not params.ignore_eos:
            banned.update(row.eos_token_ids)
    return _constant_edit(distinct_tokens(banned, vocab_size), -math.inf)


def _constant_edit(token_ids: IntArray, value: float) -> Edit:
    return Edit(token_ids, np.full(len(token_ids), value))
