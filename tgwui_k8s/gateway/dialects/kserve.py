"""KServe's v2 protocol with the generate extension (Triton, and runtimes behind KServe).

    POST /v2/models/{model}/generate         {"text_input", "parameters"} → {"text_output"}
    POST /v2/models/{model}/generate_stream  data: {"text_output"} for each piece of text

The protocol knows neither usage nor finish reasons nor a mark for the end of a stream: a stream has
ended when its connection says so, usage is left out, and the reason is `stop`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any
from urllib.parse import quote

import msgspec

from tgwui_k8s.gateway.call import COMPLETIONS, Call
from tgwui_k8s.gateway.dialects.text_generation import (
    CompletionText,
    TextRequest,
    error_envelope,
)
from tgwui_k8s.gateway.event_stream import NOT_JSON, data_of
from tgwui_k8s.gateway.failures import BrokenFramingError, EndpointError
from tgwui_k8s.gateway.streams import Stream

_NAMES: Mapping[str, str] = {
    name: name
    for name in (
        *("max_tokens", "temperature", "top_p", "top_k", "min_p", "seed", "stop"),
        *("presence_penalty", "frequency_penalty", "repetition_penalty", "ignore_eos"),
    )
}
_FINISH_REASON = "stop"


class KserveDialect:
    """See `Dialect`."""

    translates = True

    def serves(self, path: str) -> bool:
        """Completions; the protocol has no conversations."""
        return path == COMPLETIONS

    def new_stream(self, call: Call) -> Stream:
        """Pieces of text."""
        return KserveStream(call)

    def request(self, call: Call, stream: Stream | None) -> tuple[str, bytes]:
        """A `generate` call."""
        asked = TextRequest(call, _NAMES)
        parameters = {**asked.renamed(_NAMES), "stream": call.is_stream}
        verb = "generate_stream" if call.is_stream else "generate"
        target = f"/v2/models/{quote(call.model or '', safe='')}/{verb}"
        body = {"text_input": asked.prompt, "parameters": parameters}
        return target, msgspec.json.encode(body)

    def answer(self, call: Call, status: int, body: bytes) -> bytes:
        """The text."""
        found = msgspec.json.decode(body, type=dict[str, Any])
        return CompletionText(call).whole(str(found.get("text_output", "")), _FINISH_REASON, None)

    def error(self, status: int, body: bytes) -> tuple[int, bytes]:
        """`{"error": text}` in our envelope."""
        try:
            message = msgspec.json.decode(body, type=dict[str, Any]).get("error", "")
        except NOT_JSON:
            message = "The engine could not answer the request."
        return status, error_envelope(status, str(message))


class KserveStream:
    """One event per piece of text."""

    def __init__(self, call: Call) -> None:
        self._text = CompletionText(call)
        self.has_delivered = False
        self.is_complete = False

    def take(self, block: bytes) -> bytes:
        """A piece as a chunk."""
        try:
            event = msgspec.json.decode(data_of(block), type=dict[str, Any])
        except NOT_JSON:
            raise BrokenFramingError("an event is not a JSON object") from None
        if "error" in event:
            raise EndpointError(500, error_envelope(500, str(event["error"])))
        self.has_delivered = True
        return self._text.chunk(str(event.get("text_output", "")))

    def finish(self) -> bytes | None:
        """The connection has ended in order: so has the text."""
        return self._text.chunk("", _FINISH_REASON) + self._text.end(None)
