"""What a loader must provide, and the plain data that travels between scheduler and model.

A loader turns a model folder into one of three things:

* a `ModelRunner`: a model that our engine steps. It computes one batch and returns logits; our
  scheduler, sampler, stop handling and prefix cache do the rest.
* a `Backend`: an engine that batches by itself (vLLM). It takes requests and yields tokens.
* an `Embedder`: a model that makes vectors of texts and generates nothing.

Nothing here imports torch, and nothing here knows how a request reached the engine.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Literal, Protocol, runtime_checkable

import msgspec

from tgwui_k8s.sampling import SamplingParams

FinishReason = Literal["stop", "length", "abort", "error"]
"""Why a sequence ended. `tool_calls` is the API's word: it needs text to know."""


# ---------------------------------------------------------------------------- what a model is


class Capabilities(msgspec.Struct, frozen=True, kw_only=True):
    """What the loaded model and its loader can do; the API answers 400 for the rest."""

    generation: bool = True
    """False: the model makes vectors of texts instead."""
    logprobs: bool = True
    prompt_logprobs: bool = True
    guidance: bool = True
    """Classifier-free guidance (a second sequence beside every sequence)."""
    resume: bool = True
    """`resume_token_ids`: going on from tokens generated elsewhere."""
    unsupported_params: tuple[str, ...] = ()
    """Fields of `SamplingParams` that must keep their defaults."""
    prompt_lookup: bool = False
    """Tokens can be guessed and computed ahead; the engine says so, as for `grammar`."""
    adapters: bool = False
    grammar: bool = False
    """Answers can be held to a grammar; the engine says so, not the loader of a `ModelRunner`."""
    embeddings: bool = False
    images: bool = False


class ModelInfo(msgspec.Struct, frozen=True, kw_only=True):
    """Facts of a loaded model, as the API reports them. Sizes in bytes."""

    loader: str
    architecture: str
    dtype: str
    device: str
    max_model_len: int
    """The longest prompt plus completion, in tokens."""
    max_prompt_len: int | None = None
    """The longest prompt, resumed tokens included, where it is less than the context allows."""
    vocab_size: int
    eos_token_ids: tuple[int, ...]
    num_parameters: int = 0
    weight_bytes: int = 0
    quantization: str | None = None
    fingerprint: str = ""
    """Names weights, dtype and numerics: equal fingerprints give equal tokens in float32."""
    capabilities: Capabilities = Capabilities()
    tokenizer_json: bytes | None = None
    """A tokenizer in the `tokenizers` library's JSON, where the model's files hold none."""
    chat_template: str | None = None
    """A chat template's Jinja source that came with the weights."""
    embedding_sizes: tuple[int, ...] = ()
    """Numbers a vector may have: all of them first, then what it may be cut to."""
    details: dict[str, Any] = {}
    """Loader-specific facts for `/v1/internal/model/info`; JSON types only."""


# ------------------------------------------------------------------------- where its KV lives


@dataclass(frozen=True, kw_only=True, slots=True)
class KVGroup:
    """Layers whose KV cache is kept alike.

    `window` is the number of most recent positions the layers attend to, None for all of them.
    """

    num_blocks: int
    window: int | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class KVLayout:
    """How the runner's KV cache is divided into blocks, and what the scheduler must respect.

    A runner with cache rows instead of blocks (Neuron) says `block_size = max_model_len`,
    `num_blocks = max_num_seqs`, `prefix_caching = False`: one block is one row.

    Block ids count from 0 in every group; the scheduler hands out every id below `num_blocks`.
    """

    block_size: int
    groups: tuple[KVGroup, ...]
    prefix_caching: bool = True
    chunked_prefill: bool = True
    """False: a prompt is computed whole, in one step."""
    mixed_batches: bool = True
    """False: a step holds prefills or decodes, never both; one of decodes holds them all."""


# ------------------------------------------------------------------------------- one step

MAX_SCORED_ROWS = 256
"""Rows of logits in a step beside one per row of `max_num_seqs`, for runners with chunked prefill.

Prompt logprobs and guessed tokens share them; loaders reserve memory for as many.
"""


@dataclass(slots=True)
class ScheduledSequence:
    """The part of one sequence that a step computes.

    Tokens `token_ids` stand at positions `start`, `start + 1`, … The runner writes their keys
    and values into the blocks of `block_tables` (one table per KV group; logical block i holds
    positions i * block_size …) and attends to every earlier position of the same sequence.
    Table entries of a windowed group that no query can see any more are -1.

    `row` is a number below `max_num_seqs` that stays with the sequence while it runs.
    Logits are wanted for the last `num_logits` of the tokens: 0 for a prefill chunk that is not
    the last, 1 usually, more for prompt logprobs. `adapter` is its LoRA adapter's key.

    A negative token id `~i` is the token that was chosen for row i of the step before, which the
    host has not seen yet; only an `AsyncRunner` gets any.
    """

    row: int
    start: int
    token_ids: Sequence[int]
    block_tables: tuple[list[int], ...]
    num_logits: int
    adapter: str = ""


@dataclass(slots=True)
class Batch:
    """What one step executes: decodes and prefill chunks side by side."""

    sequences: list[ScheduledSequence]
    num_tokens: int

    @property
    def num_logits(self) -> int:
        """Rows of the logits that `ModelRunner.execute` returns for this batch."""
        return sum(scheduled.num_logits for scheduled in self.sequences)


Logits = Any
"""float32 [num_logits, vocab_size]: a NumPy array on the host or a torch tensor on any device."""


class TopLogprobs(msgspec.Struct, frozen=True, array_like=True):
    """Log probabilities at one position; natural logarithm.

    `token_ids` and `logprobs` list the k most likely tokens, best first, and the token itself
    last where it is not among them. `logprob` is the token's own, the identical float.
    """

    token_id: int
    logprob: float
    rank: int
    """1 for the most likely token."""
    token_ids: tuple[int, ...]
    logprobs: tuple[float, ...]


@dataclass(slots=True, eq=False)
class SamplingRow:
    """One sequence as the sampler sees it; lives as long as the sequence does.

    The engine appends to `output_token_ids` after every step. `state` belongs to the sampler
    (cached penalty tensors, Mirostat's mu): it must be rebuildable by replaying the outputs,
    because a preempted or resumed sequence starts without it.
    """

    params: SamplingParams
    eos_token_ids: tuple[int, ...]
    prompt_token_ids: Sequence[int]
    output_token_ids: list[int]
    choice: int = 0
    state: dict[str, Any] = field(default_factory=dict)
    allowed_token_ids: Any = None
    """A grammar's mask for the next token (bool [vocab_size]); None allows everything."""

    @property
    def position(self) -> int:
        """Index of the next token among the completion tokens: the noise counter."""
        return len(self.output_token_ids)


@dataclass(frozen=True, slots=True)
class SampledToken:
    """What the sampler chose for one row."""

    token_id: int
    """-1: the row has no finite logit (the model returned NaN); the sequence fails, alone."""
    logprobs: TopLogprobs | None = None
    was_retried: bool = False
    """It took a second attempt: what `PendingTokens.token_ids` has of the row is void."""


@runtime_checkable
class Sampler(Protocol):
    """Logits and rows to tokens. Stateless but for what it keeps in `SamplingRow.state`."""

    def sample(
        self,
        logits: Logits,
        rows: Sequence[SamplingRow],
        indices: Sequence[int],
        guidance_indices: Sequence[int | None],
    ) -> list[SampledToken]:
        """Choose the next token of every row.

        `indices[i]` is the logits row of `rows[i]`, `guidance_indices[i]` that of its negative
        prompt (None without guidance). A row is sampled as if it were alone.
        """
        ...

    def replay(self, logits: Logits, row: SamplingRow, token_ids: Sequence[int]) -> None:
        """Bring `row.state` to where it was after the resumed `token_ids`.

        `logits` [len(token_ids), vocab_size] are the distributions those tokens were drawn from;
        `row.output_token_ids` are the tokens before them. Called for runs of tokens in order,
        only for rows where `needs_replay(row.params)`.
        """
        ...

    def needs_replay(self, params: SamplingParams) -> bool:
        """True where the state depends on past distributions (Mirostat), not on tokens alone."""
        ...

    def prompt_logprobs(
        self, logits: Logits, target_token_ids: Sequence[int], num_top: int
    ) -> list[TopLogprobs]:
        """Log probabilities of given tokens, one per row of `logits`."""
        ...


@runtime_checkable
class ModelRunner(Protocol):
    """A model that our engine steps, with its KV cache."""

    info: ModelInfo
    layout: KVLayout
    sampler: Sampler | None
    """A sampler that works where the logits lie; None means the host's NumPy sampler."""

    def execute(self, batch: Batch) -> Logits:
        """Compute the batch in one forward and return its logits in order.

        Rows: for every sequence of the batch in order, its last `num_logits` tokens in order.
        Raises only for faults that end the engine; a request can never cause one.
        """
        ...

    def warm_up(self) -> None:
        """Run what the first request would otherwise wait for (kernels, allocator, graphs)."""
        ...

    def close(self) -> None:
        """Give back device and memory. The runner is not used afterwards."""
        ...


@runtime_checkable
class Embedder(Protocol):
    """A model that makes a vector of a text."""

    info: ModelInfo
    """`capabilities.embeddings` is true, and `embedding_sizes` says how long the vectors are."""

    def embed(self, token_id_lists: Sequence[Sequence[int]]) -> Any:
        """One vector per list of tokens: float32 [len(token_id_lists), embedding_sizes[0]].

        A NumPy array; each row is what its tokens give alone, up to rounding.
        """
        ...

    def warm_up(self) -> None:
        """Run what the first request would otherwise wait for."""
        ...

    def close(self) -> None:
        """Give back device and memory. The embedder is not used afterwards."""
        ...


# ------------------------------------------------------------------- requests and their tokens


class EmbeddingRequest(msgspec.Struct, frozen=True, kw_only=True):
    """Texts to make vectors of, as token ids."""

    request_id: str
    token_id_lists: tuple[tuple[int, ...], ...]


class GenerationRequest(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """A request as the engine sees it: token ids in, token ids out; `adapter` names a LoRA one."""

    request_id: str
    prompt_token_ids: tuple[int, ...]
    params: SamplingParams
    num_choices: int = 1
    priority: int = 0
    """Lower first; equal priorities in order of arrival."""
    timeout_seconds: float | None = None
    negative_prompt_token_ids: tuple[int, ...] = ()
    """For `guidance_scale`; empty without guidance."""
    resume_token_ids: tuple[tuple[int, ...], ...] = ()
    """Per choice: tokens already generated elsewhere; they count as completion tokens."""
    adapter: str = ""
    grammar: str = ""
    """What every choice must match, as llguidance's grammar text; empty without a grammar."""


class TokenDelta(msgspec.Struct, frozen=True, array_like=True, omit_defaults=True):
    """What one step added to one choice of a request.

    Token ids include the end-of-sequence or stop token that ended the choice; `stop_token_id`
    names it then. A request is over when every choice has had its `finish_reason`.
    """

    index: int
    token_ids: tuple[int, ...]
    finish_reason: FinishReason | None = None
    stop_token_id: int | None = None
    logprobs: tuple[TopLogprobs, ...] = ()
    prompt_logprobs: tuple[TopLogprobs, ...] | None = None
    """Once, with the first delta of choice 0: for prompt tokens 1, 2, …"""
    num_cached_tokens: int = 0
    """Prompt tokens that came from the prefix cache; on the first delta."""
    queue_seconds: float | None = None
    """On the first delta: from arrival in the engine to the first step with this request."""
    error: str | None = None
    """With finish_reason "error": what to tell the client."""
    error_code: str | None = None
    """The same as a code of api.md: `deadline_exceeded`, `context_length_exceeded`, …"""


class EngineStats(msgspec.Struct, frozen=True, kw_only=True):
    """Gauges and counters of the engine since its start; exported as metrics by the API process."""

    num_requests_running: int = 0
    num_requests_waiting: int = 0
    kv_cache_usage: float = 0.0
    """Share of blocks in use, 0 to 1; blocks that only the prefix cache holds count as free."""
    num_steps: int = 0
    num_preemptions: int = 0
    num_draft_tokens: int = 0
    """Tokens guessed by prompt lookup and computed ahead."""
    num_accepted_tokens: int = 0
    """Those of them that sampling confirmed."""
    prefix_cache_queries: int = 0
    """Prompt tokens looked up."""
    prefix_cache_hits: int = 0
    """Prompt tokens found."""
    prompt_tokens: int = 0
    """Prompt tokens computed or taken from the cache."""
    generation_tokens: int = 0
    kv_block_size: int = 0
    kv_num_blocks: int = 0


class EngineHealth(msgspec.Struct, frozen=True, kw_only=True):
    """Whether the engine can still answer; what `/health/live` reports."""

    alive: bool = True
    """False: its process died for good, or a step has not ended within the watchdog time."""
    reason: str = ""
    """Why not, in one sentence; empty while alive."""
    heartbeat_age_seconds: float = 0.0
    """Time since the engine was last heard of."""


@runtime_checkable
class Backend(Protocol):
    """Anything that generates: the engine process seen from the API, or vLLM inside it."""

    @property
    def info(self) -> ModelInfo | None:
        """The loaded model; None while nothing is loaded."""
        ...

    @property
    def stats(self) -> EngineStats:
        """The newest figures; never waits."""
        ...

    def generate(self, request: GenerationRequest) -> AsyncIterator[list[TokenDelta]]:
        """Yield deltas until every choice has finished.

        Closing the iterator early aborts the request within one step. Raises
        `UnavailableError` before the first delta where the request cannot be taken, and
        `EngineUnavailableError` at any time when the engine dies.
        """
        ...

    def abort_choice(self, request_id: str, index: int) -> None:
        """End one choice now (its text met a stop string); unknown ids are ignored."""
        ...

    async def close(self) -> None:
        """Stop the engine and free what it holds."""
        ...


# ------------------------------------------------------------------------------------ loaders


class LoadProgress(msgspec.Struct, frozen=True):
    """How far loading is; for `/health/startup`, the log and the metrics."""

    phase: str
    """`starting`, `prefetching`, `loading`, `compiling`, `warming_up` or `ready`."""
    bytes_read: int = 0
    bytes_total: int = 0


ProgressCallback = Callable[[LoadProgress], None]


def default_token_budget(device: str) -> int:
    """Tokens of one step where the operator set no `max_num_batched_tokens`.

    A GPU needs thousands to be busy; on a CPU a larger step only delays everybody else's token.
    Known when the device is: in the engine process, in the loader and after it.
    """
    return 512 if device.startswith("cpu") else 8192


class LoadRequest(msgspec.Struct, frozen=True, kw_only=True):
    """What to load and how; everything a loader needs, nothing it does not.

    Sizes in bytes; None means "decide from the model, the device and the cgroup limit".
    """

    model_path: str
    loader: str
    loader_is_inferred: bool = False
    """Nobody asked for this loader by name: a faster one that can run the model may be taken."""
    dtype: str = "auto"
    """`auto`, `float32`, `float16` or `bfloat16`."""
    device: str = "auto"
    """`auto`, `cpu` or `cuda`."""
    max_model_len: int | None = None
    max_num_seqs: int = 64
    max_num_batched_tokens: int | None = None
    """None: `default_token_budget` of the device."""
    kv_cache_bytes: int | None = None
    memory_limit_bytes: int | None = None
    block_size: int | None = None
    num_threads: int | None = None
    trust_remote_code: bool = False
    prefetch: Literal["auto", "on", "off"] = "auto"
    adapters: dict[str, str] | None = None
    """Name to folder of the LoRA adapters that the engine will load; None: it never will."""
    options: dict[str, str] = {}
    """Settings that only this loader knows; it refuses unknown ones by name."""

    @property
    def path(self) -> Path:
        """`model_path` as a path."""
        return Path(self.model_path)


@runtime_checkable
class Loader(Protocol):
    """Found through the entry-point group `tgwui_k8s.loaders`; constructed without arguments."""

    name: ClassVar[str]
    """text-generation-webui's name for it, as in `--loader`."""
    options: ClassVar[dict[str, str]]
    """The keys `LoadRequest.options` may have, each with one line of help."""

    def load(
        self, request: LoadRequest, progress: ProgressCallback
    ) -> ModelRunner | Backend | Embedder:
        """Read the weights and return something that generates or embeds.

        Raises a `StartupError` that names the file or setting and the remedy.
        """
        ...
