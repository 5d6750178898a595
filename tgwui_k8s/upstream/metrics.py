"""Hooks for `/metrics`: what runs, what waits, tokens and times, under this project's names.

Upstream generates one text at a time behind a lock; who waits for the lock is the queue.
"""

from __future__ import annotations

import functools
import logging
import platform
import threading
import time
from collections.abc import Callable, Iterator
from types import ModuleType
from typing import Any, cast

from tgwui_k8s import __version__
from tgwui_k8s.upstream.answers import Answer
from tgwui_k8s.upstream.exposition import (
    CONTENT_TYPE,
    Counter,
    Gauge,
    Histogram,
    labels,
    render,
)
from tgwui_k8s.upstream.front import Application, Receive, Scope, Send, send_answer

_ATTRIBUTE = "tgwui_k8s_metrics"
_PATH = "/metrics"

logger = logging.getLogger("tgwui_k8s")


class Metrics:
    """The figures of one process."""

    def __init__(self, shared: Any) -> None:
        self._shared = shared
        self._lock = threading.Lock()
        self.num_arrived = 0
        self.num_begun = 0
        self.num_ended = 0
        self.running = Gauge(
            "tgwui_num_requests_running",
            "Texts under way.",
            lambda: (self.key, self.num_begun - self.num_ended),
        )
        self.waiting = Gauge(
            "tgwui_num_requests_waiting",
            "Texts that wait for their turn.",
            lambda: (self.key, self.num_arrived - self.num_begun),
        )
        self.requests = Counter("tgwui_generation_requests_total", "Texts asked for.")
        self.ended = Counter("tgwui_request_success_total", "Texts that ended, by reason.")
        self.prompt_tokens = Counter("tgwui_prompt_tokens_total", "Prompt tokens computed.")
        self.tokens = Counter("tgwui_generation_tokens_total", "Tokens generated.")
        self.queue_time = Histogram("tgwui_request_queue_time_seconds", "Waiting for the lock.")
        self.first_token = Histogram(
            "tgwui_time_to_first_token_seconds", "From arrival to the first text."
        )
        self.latency = Histogram(
            "tgwui_e2e_request_latency_seconds", "From arrival to the end of the text."
        )
        versions = labels(version=__version__, python=platform.python_version())
        self.build_info = Gauge(
            "tgwui_build_info", "Always 1; versions in its labels.", lambda: (versions, 1)
        )

    @property
    def model_name(self) -> str:
        """Upstream's name of the model; empty where there is none."""
        name = self._shared.model_name
        return "" if name in (None, "None") else str(name)

    @property
    def key(self) -> str:
        """The label that all figures have."""
        return labels(model_name=self.model_name)

    def count(self, name: str) -> None:
        """One more `num_...`."""
        with self._lock:
            setattr(self, name, getattr(self, name) + 1)

    def page(self) -> bytes:
        """What Prometheus reads."""
        return render(
            [
                *(self.running, self.waiting, self.requests, self.ended),
                *(self.prompt_tokens, self.tokens),
                *(self.queue_time, self.first_token, self.latency),
                self.build_info,
            ]
        )


def metrics_of(shared: Any) -> Metrics:
    """The figures of the process that `shared` belongs to."""
    metrics = getattr(shared, _ATTRIBUTE, None)
    if metrics is None:
        metrics = Metrics(shared)
        setattr(shared, _ATTRIBUTE, metrics)
    return cast("Metrics", metrics)


def exposed(app: Application, shared: ModuleType) -> Application:
    """An ASGI application that answers `/metrics`, without a key, before `app` sees it."""
    metrics = metrics_of(shared)

    async def answer(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and scope["path"] == _PATH:
            await send_answer(Answer(200, metrics.page(), content_type=CONTENT_TYPE), send)
        else:
            await app(scope, receive, send)

    return answer


Generate = Callable[..., Iterator[Any]]


def queued(shared: ModuleType) -> Callable[[Generate], Generate]:
    """Decorator of upstream's `generate_reply`, which takes the lock."""

    def decorate(generate: Generate) -> Generate:
        @functools.wraps(generate)
        def counted(question: str, state: dict[str, Any], *args: Any, **kwargs: Any) -> Any:
            metrics = metrics_of(shared)
            metrics.count("num_arrived")
            metrics.requests.add(model_name=metrics.model_name)
            state[_ATTRIBUTE] = turn = _Turn(metrics)
            try:
                yield from generate(question, state, *args, **kwargs)
            finally:
                state.pop(_ATTRIBUTE, None)
                turn.over()

        return counted

    return decorate


def measured(shared: ModuleType) -> Callable[[Generate], Generate]:
    """Decorator of upstream's `_generate_reply`, which runs under the lock."""

    def decorate(generate: Generate) -> Generate:
        @functools.wraps(generate)
        def timed(question: str, state: dict[str, Any], *args: Any, **kwargs: Any) -> Any:
            turn: _Turn | None = state.pop(_ATTRIBUTE, None)
            if turn is None:
                yield from generate(question, state, *args, **kwargs)
                return
            turn.begin()
            reply, reason = "", "abort"
            try:
                for reply in generate(question, state, *args, **kwargs):
                    if reply:
                        turn.first()
                    yield reply
                reason = "stop"
            except Exception:
                reason = "error"
                raise
            finally:
                turn.end(reason, generate.__globals__.get("encode"), question, reply)

        return timed

    return decorate


class _Turn:
    """One text, from its arrival to its end."""

    def __init__(self, metrics: Metrics) -> None:
        self._metrics = metrics
        self._arrived = time.monotonic()
        self._model_name = metrics.model_name
        self._is_begun = False
        self._is_ended = False
        self._has_text = False

    def begin(self) -> None:
        """The lock is ours."""
        self._is_begun = True
        self._metrics.count("num_begun")
        self._metrics.queue_time.observe(time.monotonic() - self._arrived, self._model_name)

    def first(self) -> None:
        """There is text."""
        if not self._has_text:
            self._has_text = True
            self._metrics.first_token.observe(time.monotonic() - self._arrived, self._model_name)

    def end(self, reason: str, encode: Any, question: str, reply: str) -> None:
        """Count the tokens as upstream's usage does, by encoding."""
        metrics, name = self._metrics, self._model_name
        metrics.latency.observe(time.monotonic() - self._arrived, name)
        metrics.ended.add(model_name=name, finished_reason=reason)
        try:
            metrics.prompt_tokens.add(len(encode(question)[0]), model_name=name)
            metrics.tokens.add(len(encode(reply)[0]) if reply else 0, model_name=name)
        except Exception as error:  # noqa: BLE001 - figures must not fail what they count
            logger.warning("the tokens of a text could not be counted: %s", error)

    def over(self) -> None:
        """Leave the figures of what is under way, however far it came."""
        if self._is_ended:
            return
        self._is_ended = True
        if not self._is_begun:
            self._metrics.count("num_begun")
        self._metrics.count("num_ended")
