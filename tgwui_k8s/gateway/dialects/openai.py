"""Engines that speak OpenAI's API as we do: requests and answers pass as they are."""

from __future__ import annotations

import msgspec

from tgwui_k8s.gateway.call import CHAT, COMPLETIONS, Call
from tgwui_k8s.gateway.continuation.token_stream import TokenStream, can_continue
from tgwui_k8s.gateway.dialects.text_generation import error_envelope
from tgwui_k8s.gateway.event_stream import NOT_JSON
from tgwui_k8s.gateway.streams import PlainStream, Stream

_WITH_DONE = frozenset({COMPLETIONS, CHAT})


class OwnDialect:
    """This project's engine, or another gateway: everything, and streams that continue."""

    translates = False

    def serves(self, path: str) -> bool:
        """Every route."""
        return True

    def new_stream(self, call: Call) -> Stream:
        """One that continues where that is possible."""
        if can_continue(call):
            return TokenStream(call)
        return PlainStream(call, has_done=call.path in _WITH_DONE)

    def request(self, call: Call, stream: Stream | None) -> tuple[str, bytes]:
        """The request as it came, with what makes its stream continue."""
        body = stream.body() if isinstance(stream, TokenStream) else call.body
        return _target(call), body

    def answer(self, call: Call, status: int, body: bytes) -> bytes:
        """As it is."""
        return body

    def error(self, status: int, body: bytes) -> tuple[int, bytes]:
        """As it is."""
        return status, body


class VllmDialect(OwnDialect):
    """vLLM: OpenAI's routes, Anthropic's, and some more."""

    _ROUTES = frozenset(
        {
            COMPLETIONS,
            CHAT,
            "/v1/embeddings",
            "/v1/messages",
            "/v1/responses",
            "/tokenize",
            "/detokenize",
            "/invocations",
        }
    )

    def serves(self, path: str) -> bool:
        """Its own routes."""
        return path in self._ROUTES

    def new_stream(self, call: Call) -> Stream:
        """It cannot continue."""
        return PlainStream(call, has_done=call.path in _WITH_DONE)

    def error(self, status: int, body: bytes) -> tuple[int, bytes]:
        """Older versions have the error without an envelope around it."""
        try:
            found = msgspec.json.decode(body)
        except NOT_JSON:
            return status, error_envelope(status, "The engine could not answer the request.")
        if isinstance(found, dict) and isinstance(found.get("error"), dict):
            return status, body
        message = found.get("message") if isinstance(found, dict) else None
        return status, error_envelope(status, str(message or found))


class LlamaServerDialect(VllmDialect):
    """llama.cpp's server."""

    _ROUTES = frozenset({COMPLETIONS, CHAT, "/v1/embeddings", "/v1/messages", "/tokenize"})


def _target(call: Call) -> str:
    return f"{call.path}?{call.query.decode('ascii')}" if call.query else call.path
