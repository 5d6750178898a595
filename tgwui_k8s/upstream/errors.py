"""Hooks for errors: what failed answers 4xx or 5xx, or an error event in a stream that has begun.

Upstream logs most failures and answers 200 with an empty text, or lets Starlette say "Internal
Server Error" in plain text.
"""

from __future__ import annotations

import functools
import json
import logging
from collections.abc import Callable
from types import ModuleType
from typing import Any

from tgwui_k8s.upstream.answers import error_body, refusal
from tgwui_k8s.upstream.front import Application, Message, Receive, Scope, Send, send_answer
from tgwui_k8s.upstream.service import Service, service_of

_NEEDS_MODEL = frozenset(
    {
        *("/v1/completions", "/v1/chat/completions", "/v1/messages"),
        *("/v1/internal/encode", "/v1/internal/decode", "/v1/internal/token-count"),
        *("/v1/internal/logits", "/v1/internal/chat-prompt"),
    }
)
_ANTHROPIC = "/v1/messages"

logger = logging.getLogger("tgwui_k8s")


class ModelNotLoaded(Exception):  # noqa: N818 - says what is the case
    """A loader gave nothing back."""


def load_or_raise(shared: ModuleType) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Decorator of upstream's `load_model`: a load that failed raises, and leaves no name behind.

    Upstream returns (None, None) and goes on as if the model were there.
    """

    def decorate(load: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(load)
        def checked(model_name: str, *args: Any, **kwargs: Any) -> Any:
            try:
                model, tokenizer = load(model_name, *args, **kwargs)
            except BaseException:
                _forget(shared)
                raise
            if model is None:
                _forget(shared)
                raise ModelNotLoaded(f"the model '{model_name}' could not be loaded; see the log")
            return model, tokenizer

        return checked

    return decorate


def _forget(shared: Any) -> None:
    shared.model = shared.tokenizer = None
    shared.model_name = "None"


class ErrorAnswers:
    """ASGI middleware around upstream's routes, added with `app.add_middleware(...)`."""

    def __init__(self, app: Application, shared: ModuleType) -> None:
        self._app = app
        self._service: Service = service_of(shared)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Refuse what needs a model while there is none; give every exception its answer."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        if scope["path"] in _NEEDS_MODEL and not self._service.has_model:
            await send_answer(refusal(503, "No model is loaded.", "model_not_ready", 5), send)
            return
        begun: Message = {}

        async def watching(message: Message) -> None:
            if message["type"] == "http.response.start":
                begun.update(message)
            await send(message)

        try:
            await self._app(scope, receive, watching)
        except Exception as caught:
            error = _innermost(caught)
            status, message, code = _meaning(error)
            if status >= 500:
                logger.error("%s %s failed", scope["method"], scope["path"], exc_info=error)
            if not begun:
                await send_answer(refusal(status, message, code), send)
            elif _is_event_stream(begun):
                event = _event(scope["path"], message, status, code)
                await send({"type": "http.response.body", "body": event})
            else:
                raise  # half an answer: only cutting the connection tells the client


def _innermost(error: BaseException) -> BaseException:
    """What a task group has wrapped."""
    while (inner := getattr(error, "exceptions", None)) and len(inner) == 1:
        error = inner[0]
    return error


def _meaning(error: BaseException) -> tuple[int, str, str | None]:
    """Status, message and code. Upstream's own errors of its API carry `code` and `message`."""
    status, message = getattr(error, "code", None), getattr(error, "message", None)
    if isinstance(status, int) and 400 <= status < 600 and isinstance(message, str):
        return status, message, None
    if getattr(error, "is_clients_fault", False):
        return 400, str(error), "unsupported_parameter"
    return 500, f"Generation failed: {type(error).__name__}: {error}"[:500], "internal_error"


def _is_event_stream(start: Message) -> bool:
    headers = {name.lower(): value for name, value in start["headers"]}
    return b"text/event-stream" in headers.get(b"content-type", b"")


def _event(path: str, message: str, status: int, code: str | None) -> bytes:
    """The last event of a stream: OpenAI's error object, or Anthropic's."""
    if path == _ANTHROPIC:
        body = {"type": "error", "error": {"type": "api_error", "message": message}}
        return f"event: error\ndata: {json.dumps(body)}\n\n".encode()
    kind = "server_error" if status >= 500 else "invalid_request_error"
    return f"data: {json.dumps(error_body(message, kind, code))}\n\n".encode()
