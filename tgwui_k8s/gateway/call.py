"""`Call`: one client's request, read once. Only what the gateway needs is decoded.

A body may be large and is the engine's to judge: the gateway looks at a dozen members, and passes
on the bytes as they came where nothing has to be changed.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import msgspec
from msgspec import UNSET, Raw, UnsetType

from tgwui_k8s.errors import InvalidRequestError
from tgwui_k8s.gateway.affinity import beginning_of, conversation_key
from tgwui_k8s.gateway.limits import Limits

COMPLETIONS = "/v1/completions"
CHAT = "/v1/chat/completions"

SESSION_HEADER = b"x-session-id"


class Asked(msgspec.Struct, kw_only=True, gc=False):
    """The members of a body that concern the gateway; a wrong type is the engine's to refuse."""

    model: Any = None
    stream: Any = None
    n: Any = None
    best_of: Any = None
    echo: Any = None
    seed: Any = None
    priority: Any = None
    timeout_s: Any = None
    stream_options: Any = None
    return_token_ids: Any = UNSET
    resume_token_ids: Any = None
    resume_text_lengths: Any = None
    logprobs: Any = None
    max_tokens: Any = None
    max_completion_tokens: Any = None
    max_output_tokens: Any = None
    prompt: Raw | UnsetType = UNSET
    messages: Raw | UnsetType = UNSET


_decoder = msgspec.json.Decoder(Asked)
_raw_list = msgspec.json.Decoder(list[Raw])
_encode = msgspec.json.encode


@dataclass(slots=True, eq=False)
class Call:
    """A request on its way through the gateway."""

    method: str
    path: str
    """Without the prefixes that proxies and KServe put in front."""
    query: bytes
    headers: dict[bytes, bytes]
    body: bytes
    asked: Asked
    limits: Limits
    arrival: float
    """On the monotonic clock, as all times here."""
    request_id: str
    trace_parent: bytes
    key_name: str = ""
    """Whose request it is; for fair shares."""
    served_model: str = ""
    """The model that serves it, also where none is named; one of ours, never a client's text."""
    endpoint_names: list[str] = field(default_factory=list)
    """Who has been tried, in order."""
    failures: list[tuple[str, str]] = field(default_factory=list)
    """Of attempts: the endpoint's name and the reason."""
    num_retries: int = 0
    num_continuations: int = 0
    wait_seconds: float = 0.0
    """Spent in queues and waiting for endpoints."""
    waited_before: float = 0.0
    """Of it, what lies before the last time that an endpoint took the call up."""
    cancel_reason: str = ""
    """Why its task was cancelled, where that was not the client's leaving."""
    num_prompt_tokens: int | None = None
    """As far as the endpoint has said; also of an answer that broke off."""
    num_completion_tokens: int | None = None
    endpoint_seconds: float = 0.0
    """Spent waiting for endpoints to answer, up to the first byte."""
    _conversation: bytes | UnsetType | None = UNSET

    @property
    def model(self) -> str | None:
        """The model that is asked for by name."""
        return self.asked.model if isinstance(self.asked.model, str) else None

    @property
    def span_id(self) -> str:
        """Unique, also where clients send the same request id twice."""
        return self.trace_parent.split(b"-")[2].decode()

    @property
    def priority(self) -> int:
        """Lower goes first."""
        priority = self.asked.priority
        return priority if type(priority) is int else 0

    @property
    def is_stream(self) -> bool:
        """Whether the client wants events."""
        return self.asked.stream is True

    @property
    def deadline(self) -> float:
        """When the request must be over."""
        return self.arrival + self.limits.total

    @property
    def waited_at_a_stretch(self) -> float:
        """Seconds that it waits for somebody to take it up, this time."""
        return self.wait_seconds - self.waited_before

    def conversation(self) -> bytes | None:
        """The key that all turns of a conversation share, if it can be told."""
        if self._conversation is UNSET:
            self._conversation = self._conversation_key()
        return self._conversation

    def _conversation_key(self) -> bytes | None:
        model, asked = self.model or "", self.asked
        if session := self.headers.get(SESSION_HEADER):
            return conversation_key(model, session)
        messages = bytes(asked.messages) if isinstance(asked.messages, Raw) else None
        prompt = bytes(asked.prompt) if isinstance(asked.prompt, Raw) else None
        beginning = beginning_of(messages, prompt)
        return conversation_key(model, beginning) if beginning else None

    def num_prompts(self) -> int:
        """How many prompts a completion has: a list of texts or of token lists has several."""
        prompt = bytes(self.asked.prompt) if isinstance(self.asked.prompt, Raw) else b""
        if not prompt.startswith(b"["):
            return 1
        prompts = _raw_list.decode(prompt)  # Token ids may be many: none of them is made.
        is_several = bool(prompts) and bytes(prompts[0])[:1] in (b'"', b"[")
        return len(prompts) if is_several else 1

    def note_usage(self, usage: object) -> None:
        """Take the figures of a `usage` member, in OpenAI's words or Anthropic's."""
        if not isinstance(usage, dict):
            return
        prompt = usage.get("prompt_tokens", usage.get("input_tokens"))
        completion = usage.get("completion_tokens", usage.get("output_tokens"))
        if isinstance(prompt, int):
            self.num_prompt_tokens = prompt
        if isinstance(completion, int):
            self.num_completion_tokens = completion

    def body_with(self, **members: Any) -> bytes:
        """The body with these members added or replaced."""
        has_any = any(getattr(self.asked, name, None) not in (None, UNSET) for name in members)
        if has_any or not self.body.rstrip().endswith(b"}"):
            return _encode({**msgspec.json.decode(self.body), **members})
        # Added at the end, without reading all the rest: of two members the last counts.
        start = self.body.rstrip()[:-1].rstrip()
        comma = b"" if start.endswith(b"{") else b","
        return start + comma + _encode(members)[1:]


def read_asked(body: bytes) -> Asked:
    """The members of a JSON body. Raises `InvalidRequestError` where it is not an object."""
    try:
        body.decode()  # the decoder passes over strings that it does not keep
        asked = _decoder.decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        raise InvalidRequestError(
            "We could not parse the JSON body of your request. (HINT: This likely means you aren't "
            "using your HTTP library correctly. The API expects a JSON payload, but what was sent "
            "was not valid JSON.)"
        ) from None
    if asked.model is not None and not isinstance(asked.model, str):
        raise InvalidRequestError(
            "Invalid type for 'model': expected a string.", param="model", code="invalid_type"
        )
    return asked
