"""What the API process and the engine process say to each other.

Every message is one msgpack frame on a Unix stream socket (see `channel`). Requests are named by
their `request_id`; ids are the API process's to choose and unique among live requests.
"""

from __future__ import annotations

import msgspec

from tgwui_k8s.contract import (
    EmbeddingRequest,
    EngineStats,
    GenerationRequest,
    LoadProgress,
    LoadRequest,
    ModelInfo,
    TokenDelta,
    default_token_budget,
)


class EngineSettings(msgspec.Struct, frozen=True, kw_only=True):
    """What the engine itself must know, beside what the loader must know."""

    max_num_seqs: int
    max_num_batched_tokens: int | None = None
    """None: `default_token_budget` of the device the model was loaded on."""
    max_waiting_requests: int

    def token_budget(self, device: str) -> int:
        """Tokens of one step on this device."""
        return self.max_num_batched_tokens or default_token_budget(device)


# -- API process → engine process --------------------------------------------------------------


class Load(msgspec.Struct, frozen=True, tag=True):
    """The first message after the start, and the only one of its kind: one process, one model."""

    request: LoadRequest
    settings: EngineSettings


class AddRequest(msgspec.Struct, frozen=True, tag=True):
    """Take this request; answered by `StepOutput`s until all its choices have finished."""

    request: GenerationRequest


class Embed(msgspec.Struct, frozen=True, tag=True):
    """Make vectors of these texts; answered by `Embedded`."""

    request: EmbeddingRequest


class AbortRequest(msgspec.Struct, frozen=True, tag=True):
    """Forget this request, or one choice of it; nothing more is sent about it."""

    request_id: str
    index: int | None = None


class LoadAdapter(msgspec.Struct, frozen=True, tag=True):
    """Load a LoRA adapter, in place of one of the same name; answered by `AdapterChanged`."""

    name: str
    folder: str


class UnloadAdapter(msgspec.Struct, frozen=True, tag=True):
    """Let no new request use this adapter; answered by `AdapterChanged`."""

    name: str


class Shutdown(msgspec.Struct, frozen=True, tag=True):
    """Exit now; requests still running are dropped."""


ToEngine = Load | AddRequest | Embed | AbortRequest | LoadAdapter | UnloadAdapter | Shutdown


# -- engine process → API process --------------------------------------------------------------


class Progress(msgspec.Struct, frozen=True, tag=True):
    """Loading goes on."""

    progress: LoadProgress


class Loaded(msgspec.Struct, frozen=True, tag=True):
    """The model is loaded and warm."""

    info: ModelInfo
    stats: EngineStats
    load_seconds: float
    token_budget: int
    """The most tokens a step may have."""


class LoadFailed(msgspec.Struct, frozen=True, tag=True):
    """The model could not be loaded; the process exits after this. `kind` is the error's class."""

    kind: str
    message: str


class RequestDeltas(msgspec.Struct, frozen=True, array_like=True):
    """What one step produced for one request."""

    request_id: str
    deltas: list[TokenDelta]


class StepOutput(msgspec.Struct, frozen=True, tag=True):
    """Everything one step produced, for all requests, in one frame."""

    requests: list[RequestDeltas]
    stats: EngineStats


class Embedded(msgspec.Struct, frozen=True, tag=True):
    """The vectors of a request's texts: float32 of the machine's own byte order, row after row."""

    request_id: str
    vectors: bytes


class AdapterChanged(msgspec.Struct, frozen=True, tag=True):
    """The oldest change of adapters is made, or could not be: `error_kind` is the error's class."""

    error_kind: str = ""
    message: str = ""


class Rejected(msgspec.Struct, frozen=True, tag=True):
    """The request was not taken: the waiting queue is full."""

    request_id: str
    message: str


class Heartbeat(msgspec.Struct, frozen=True, tag=True):
    """Sent every second by a thread of its own.

    `step_tokens` is the size of the step under way, 0 between steps: a large one may take longer.
    """

    num_steps: int
    has_work: bool
    step_tokens: int


FromEngine = (
    Progress | Loaded | LoadFailed | StepOutput | Embedded | AdapterChanged | Rejected | Heartbeat
)
