"""llama.cpp's log lines into ours. Importing this needs llama-cpp-python."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager

import llama_cpp

logger = logging.getLogger("llama.cpp")

_LEVELS = {1: logging.DEBUG, 2: logging.DEBUG, 3: logging.WARNING, 4: logging.ERROR}
"""ggml's levels. What it calls information is a hundred lines a start: for debugging here."""


_FALSE_ALARM = b"possible training context overflow"
"""The cache is larger than the model's context because many sequences share it."""


@llama_cpp.llama_log_callback  # type: ignore[untyped-decorator]
def _relay(level: int, text: bytes, _: object) -> None:
    """Called by llama.cpp, from any thread; level 5 continues a line and only draws progress."""
    if _FALSE_ALARM in text:
        return
    if level in _LEVELS and (line := text.decode("utf-8", errors="replace").strip()):
        logger.log(_LEVELS[level], "%s", line)


def route_log() -> None:
    """Send everything llama.cpp says to the logger of its name, for the rest of the process."""
    llama_cpp.llama_log_set(_relay, None)


@contextmanager
def collect_errors() -> Iterator[list[str]]:
    """The errors that llama.cpp logs meanwhile: it returns none, it only says them."""
    errors: list[str] = []
    collector = _Collector(errors)
    logger.addHandler(collector)
    try:
        yield errors
    finally:
        logger.removeHandler(collector)


class _Collector(logging.Handler):
    def __init__(self, errors: list[str]) -> None:
        super().__init__(logging.ERROR)
        self._errors = errors

    def emit(self, record: logging.LogRecord) -> None:
        self._errors.append(record.getMessage())
