"""Text Generation Inference: completions through `/generate`, chat as it is.

    {"inputs", "parameters": {...}}  →  {"generated_text", "details"}
                                        data: {"token", "generated_text", "details"} per token

TGI leaves stop strings in its text, answers 422 where OpenAI answers 400, and ends its streams with
the event that has `details`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgspec

from tgwui_k8s.gateway.call import CHAT, COMPLETIONS, Call
from tgwui_k8s.gateway.dialects.text_generation import (
    CompletionText,
    StopCutter,
    TextRequest,
    error_envelope,
    usage_of,
)
from tgwui_k8s.gateway.event_stream import NOT_JSON, data_of
from tgwui_k8s.gateway.failures import BrokenFramingError, EndpointError
from tgwui_k8s.gateway.streams import PlainStream, Stream

_NAMES: Mapping[str, str] = {
    "max_tokens": "max_new_tokens",
    "temperature": "temperature",
    "top_p": "top_p",
    "top_k": "top_k",
    "typical_p": "typical_p",
    "repetition_penalty": "repetition_penalty",
    "frequency_penalty": "frequency_penalty",
    "seed": "seed",
    "stop": "stop",
    "do_sample": "do_sample",
}
_FINISH_REASONS = {"length": "length", "eos_token": "stop", "stop_sequence": "stop"}
_STATUSES = {422: 400, 424: 500}
_RETRYABLE = frozenset({"overloaded", "generation", "incomplete_generation"})


class TgiDialect:
    """See `Dialect`."""

    translates = True

    def serves(self, path: str) -> bool:
        """Completions and chat."""
        return path in (COMPLETIONS, CHAT)

    def new_stream(self, call: Call) -> Stream:
        """Chat is OpenAI's already."""
        return PlainStream(call, has_done=True) if call.path == CHAT else TgiStream(call)

    def request(self, call: Call, stream: Stream | None) -> tuple[str, bytes]:
        """A `generate` call."""
        if call.path == CHAT:
            return CHAT, call.body
        asked = TextRequest(call, _NAMES)
        parameters = {**asked.renamed(_NAMES), "details": True}
        if isinstance(parameters.get("stop"), str):
            parameters["stop"] = [parameters["stop"]]
        # TGI knows greedy decoding as the absence of sampling, and refuses a temperature of 0.
        if parameters.get("temperature") == 0:
            del parameters["temperature"]
            parameters["do_sample"] = False
        else:
            parameters.setdefault("do_sample", True)
        target = "/generate_stream" if call.is_stream else "/generate"
        body = {"inputs": asked.prompt, "parameters": parameters}
        return target, msgspec.json.encode(body)

    def answer(self, call: Call, status: int, body: bytes) -> bytes:
        """The text without its stop string."""
        if call.path == CHAT:
            return body
        found = msgspec.json.decode(body, type=dict[str, Any])
        details = found.get("details") or {}
        cutter = StopCutter(_stop_of(call))
        text = cutter.feed(str(found.get("generated_text", "")), is_last=True)
        return CompletionText(call).whole(
            text, _finish_reason(details), _usage(details, len(details.get("prefill") or ()))
        )

    def error(self, status: int, body: bytes) -> tuple[int, bytes]:
        """`{"error": text, "error_type": word}` in our envelope."""
        return _STATUSES.get(status, status), error_envelope(status, _message(body))


class TgiStream:
    """One event per token."""

    def __init__(self, call: Call) -> None:
        self._text = CompletionText(call)
        self._cutter = StopCutter(_stop_of(call))
        self.has_delivered = False
        self.is_complete = False

    def take(self, block: bytes) -> bytes:
        """A token as a chunk; with the last one, the end."""
        try:
            event = msgspec.json.decode(data_of(block), type=dict[str, Any])
        except NOT_JSON:
            raise BrokenFramingError("an event is not a JSON object") from None
        if "error" in event:
            can_retry = event.get("error_type") in _RETRYABLE
            body = error_envelope(500, str(event["error"]))
            raise EndpointError(500, body, is_retryable=can_retry)
        token, details = event.get("token") or {}, event.get("details")
        text = "" if token.get("special") else str(token.get("text", ""))
        given = self._cutter.feed(text, is_last=details is not None)
        self.has_delivered = self.has_delivered or bool(given) or details is not None
        if details is None:
            return self._text.chunk(given) if given else b""
        self.is_complete = True
        usage = _usage(details, 0)
        return self._text.chunk(given, _finish_reason(details)) + self._text.end(usage)

    def finish(self) -> bytes | None:
        """Without details something is missing."""
        return None


def _stop_of(call: Call) -> Any:
    return msgspec.json.decode(call.body, type=dict[str, Any]).get("stop")


def _finish_reason(details: Mapping[str, Any]) -> str:
    return _FINISH_REASONS.get(str(details.get("finish_reason")), "stop")


def _usage(details: Mapping[str, Any], num_prefill: int) -> dict[str, int] | None:
    num_prompt = details.get("input_length") or num_prefill
    if not num_prompt or "generated_tokens" not in details:
        return None
    return usage_of(int(num_prompt), int(details["generated_tokens"]))


def _message(body: bytes) -> str:
    try:
        return str(msgspec.json.decode(body, type=dict[str, Any]).get("error", ""))
    except NOT_JSON:
        return "The engine could not answer the request."
