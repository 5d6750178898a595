"""Requests and their sequences, as the scheduler keeps them.

Request ── one per client request
  └── Sequence ── one per choice: tokens, sampling state, status
        └── Lane ── one stream of tokens with its own KV cache:
                    the sequence itself and, under guidance, its negative prompt
"""

from __future__ import annotations

from collections.abc import Sequence as AnySequence
from dataclasses import dataclass, field
from enum import Enum
from typing import Any

from tgwui_k8s.contract import (
    FinishReason,
    GenerationRequest,
    SamplingRow,
    TopLogprobs,
)
from tgwui_k8s.engine.prompt_lookup import PromptLookup


class Status(Enum):
    """Where a sequence stands."""

    BLOCKED = "blocked"
    """Waits for the first choice of its request to compute the prompt they share."""
    WAITING = "waiting"
    RUNNING = "running"
    FINISHED = "finished"


class Lane:
    """Tokens that are computed one after the other over one KV cache.

    `num_computed` of `token_ids` have their keys and values in the blocks of `block_tables`.
    """

    __slots__ = (
        "adapter",
        "block_tables",
        "cache_salt",
        "digests",
        "first_live_blocks",
        "num_computed",
        "num_registered",
        "row",
        "token_ids",
    )

    def __init__(self, token_ids: list[int], num_groups: int, adapter: str = "") -> None:
        self.token_ids = token_ids
        self.num_computed = 0
        self.row = -1
        self.block_tables: tuple[list[int], ...] = tuple([] for _ in range(num_groups))
        self.first_live_blocks = [0] * num_groups
        """Per group: table entries below are -1, dropped because no window reaches them."""
        self.digests: list[bytes] = []
        """Names of the lane's full blocks, as far as they were needed."""
        self.num_registered = 0
        self.adapter = adapter
        """The key of the adapter that computes it."""
        self.cache_salt = adapter.encode()
        """Keeps lanes apart that must not share blocks."""

    @property
    def num_uncomputed(self) -> int:
        """Tokens still to be computed before the next one can be sampled."""
        return len(self.token_ids) - self.num_computed


@dataclass(slots=True, eq=False)
class Sequence:
    """One choice of a request."""

    request: Request
    index: int
    lanes: tuple[Lane, ...]
    sampling: SamplingRow
    status: Status = Status.WAITING
    finish_reason: FinishReason | None = None
    has_answered: bool = False
    """A first delta has been sent."""
    num_cached_tokens: int = 0
    to_replay: tuple[int, ...] = ()
    """Resumed tokens whose distributions the sampler must see again."""
    num_replayed: int = 0
    lookup: PromptLookup | None = None
    """Guesses what comes next, where the request asked for that."""
    grammar: Any = None
    """Where it stands in its grammar (`engine.grammar.GrammarState`); None without one."""
    can_run_ahead: bool = False
    """Its next step can be launched before its last token is known."""
    num_unknown: int = 0
    """So many of its last tokens are only on the device yet; here, they are negative."""

    @property
    def order(self) -> tuple[int, int, int]:
        """Who goes first: priority, then arrival, then choice."""
        return (self.request.priority, self.request.arrival, self.index)

    @property
    def is_grammar_complete(self) -> bool:
        """True when its grammar allows nothing more."""
        return self.grammar is not None and bool(self.grammar.is_complete)

    @property
    def num_uncomputed(self) -> int:
        """Tokens still to be computed, over all lanes."""
        return sum([len(lane.token_ids) - lane.num_computed for lane in self.lanes])

    @property
    def wants_prompt_logits(self) -> bool:
        """True while prompt logprobs, or distributions to replay, are still to be collected."""
        if self.num_replayed < len(self.to_replay):
            return True
        return self.index == 0 and self.request.num_missing_prompt_logprobs > 0

    @property
    def is_decoding(self) -> bool:
        """True when every lane lacks just its newest token."""
        return all(len(lane.token_ids) - lane.num_computed == 1 for lane in self.lanes)

    @property
    def num_known_tokens(self) -> int:
        """Tokens of the longest lane, without those that are not known yet."""
        return max([len(lane.token_ids) for lane in self.lanes]) - self.num_unknown

    def promise(self, row: int) -> None:
        """Go on with the token that a step under way chooses for its row `row`."""
        self.num_unknown += 1
        self._append(~row)

    def take(self, token_id: int) -> int:
        """Take a sampled token into every lane; returns how many outputs are known now."""
        outputs = self.sampling.output_token_ids
        if not self.num_unknown:
            self._append(token_id)
            return len(outputs)
        outputs[-self.num_unknown] = token_id
        for lane in self.lanes:
            lane.token_ids[-self.num_unknown] = token_id
        self.num_unknown -= 1
        return len(outputs) - self.num_unknown

    def forget_unknown(self) -> None:
        """Go back to the newest token that is known."""
        for token_ids in (*(lane.token_ids for lane in self.lanes), self.sampling.output_token_ids):
            del token_ids[len(token_ids) - self.num_unknown :]
        self.num_unknown = 0

    def _append(self, token_id: int) -> None:
        for lane in self.lanes:
            lane.token_ids.append(token_id)
        self.sampling.output_token_ids.append(token_id)


@dataclass(slots=True, eq=False)
class Request:
    """A client's request and what is shared by its choices."""

    source: GenerationRequest
    arrival: int
    arrival_time: float
    sequences: list[Sequence] = field(default_factory=list)
    adapter: str = ""
    """The key of its adapter, held until it has ended."""
    prompt_logprobs: list[TopLogprobs] = field(default_factory=list)
    first_scheduled_time: float | None = None

    @property
    def request_id(self) -> str:
        """The API process's name for it."""
        return self.source.request_id

    @property
    def priority(self) -> int:
        """Lower goes first."""
        return self.source.priority

    @property
    def prompt_token_ids(self) -> AnySequence[int]:
        """The prompt that all choices share."""
        return self.source.prompt_token_ids

    def resumed_token_ids(self, index: int) -> tuple[int, ...]:
        """What was generated of a choice elsewhere; part of its `max_tokens`."""
        resumed = self.source.resume_token_ids
        return resumed[index] if resumed else ()

    @property
    def deadline(self) -> float | None:
        """On the engine's clock; None means the request may take for ever."""
        if self.source.timeout_seconds is None:
            return None
        return self.arrival_time + self.source.timeout_seconds

    @property
    def num_missing_prompt_logprobs(self) -> int:
        """Prompt tokens whose log probability is wanted and not known yet."""
        if self.source.params.prompt_logprobs is None:
            return 0
        return max(0, len(self.prompt_token_ids) - 1 - len(self.prompt_logprobs))

    @property
    def is_finished(self) -> bool:
        """True when every choice has ended."""
        return all(sequence.status is Status.FINISHED for sequence in self.sequences)
