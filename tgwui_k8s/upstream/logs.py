"""Hooks for logs: one JSON object a line on stdout, whoever wrote it, and no key in any.

Fields as in this project's own logs: `ts`, `level`, `logger`, `msg`, `exc`.
"""

from __future__ import annotations

import io
import json
import logging
import os
import re
import sys
import threading
import traceback
from collections.abc import Callable
from datetime import datetime, timezone
from typing import Any

MAX_TEXT_CHARS = 16_384
SECRET_FLAGS = ("api_key", "admin_key", "gradio_auth")
_COLOURS = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")
_MASK = "***"
_QUIET = ("urllib3", "httpx", "httpcore", "diffusers", "torch", "asyncio", "matplotlib", "PIL")


def setup(logger: logging.Logger, upstreams_setup: Callable[[], None]) -> None:
    """Instead of upstream's `setup_logging`: JSON lines, unless a person looks at a terminal.

    TGWUI_LOG_FORMAT=json or text overrides what stdout is.
    """
    wanted = os.environ.get("TGWUI_LOG_FORMAT", "auto")
    if wanted == "text" or (wanted != "json" and os.isatty(1)):
        upstreams_setup()
        return
    handler = JsonHandler(os.dup(1))
    root = logging.getLogger()
    root.handlers = [handler]
    root.setLevel(logging.INFO)
    logger.handlers = []
    logger.setLevel(logging.INFO)
    logger.buffer = []  # type: ignore[attr-defined]  # upstream's own attribute
    for name in _QUIET:
        logging.getLogger(name).setLevel(logging.ERROR)
    # Upstream cuts this one off from the root.
    server = logging.getLogger("uvicorn.error")
    server.handlers = [handler]
    server.propagate = False
    logging.getLogger("uvicorn.access").addFilter(is_news)
    logging.captureWarnings(True)
    sys.stdout = LineWriter(handler, "stdout", "info")
    sys.stderr = LineWriter(handler, "stderr", "warning")
    sys.excepthook = _log_uncaught
    threading.excepthook = _log_uncaught_in_thread
    _capture_native_output(handler)


def is_news(record: logging.LogRecord) -> bool:
    """False for uvicorn's line about a probe or a scrape."""
    path = record.args[2] if isinstance(record.args, tuple) and len(record.args) > 2 else ""
    return not str(path).startswith(("/health", "/metrics"))


def mask(args: Any) -> None:
    """Keep the values of upstream's secret flags out of every line from now on."""
    secrets = [value for name in SECRET_FLAGS if (value := getattr(args, name, None))]
    for handler in logging.getLogger().handlers:
        if isinstance(handler, JsonHandler):
            handler.mask(secrets)


class JsonHandler(logging.Handler):
    """Writes records as lines to a descriptor. Never raises: a full disk loses the line."""

    def __init__(self, descriptor: int) -> None:
        super().__init__()
        self._descriptor = descriptor
        # Reentrant: a finaliser may log while this very thread writes.
        self._writing = threading.RLock()
        self._secrets: tuple[str, ...] = ()

    def mask(self, secrets: list[str]) -> None:
        """Longest first, so that a key within a key leaves nothing behind."""
        self._secrets = tuple(sorted({*self._secrets, *secrets}, key=len, reverse=True))

    def emit(self, record: logging.LogRecord) -> None:
        """Write one record."""
        try:
            message = record.getMessage()
        except Exception:  # noqa: BLE001 - wrong arguments of somebody's log call
            message = f"{record.msg!r} {record.args!r}"
        stack = None
        if record.exc_info and record.exc_info[0] is not None:
            stack = "".join(traceback.format_exception(*record.exc_info))
        self.write(record.levelname.lower(), record.name, message, stack, record.created)

    def write(
        self,
        level: str,
        logger: str,
        message: str,
        stack: str | None = None,
        seconds: float | None = None,
    ) -> None:
        """Write one line."""
        moment = datetime.now(timezone.utc)
        if seconds is not None:
            moment = datetime.fromtimestamp(seconds, timezone.utc)
        line = {
            "ts": moment.isoformat(timespec="milliseconds").replace("+00:00", "Z"),
            "level": level,
            "logger": logger,
            "msg": self._clean(message)[:MAX_TEXT_CHARS],
        }
        if stack is not None:
            line["exc"] = self._clean(stack)[-MAX_TEXT_CHARS:]
        data = (json.dumps(line, ensure_ascii=False) + "\n").encode("utf-8", "backslashreplace")
        with self._writing:
            try:
                while data:
                    data = data[os.write(self._descriptor, data) :]
            except OSError:
                return

    def _clean(self, text: str) -> str:
        text = _COLOURS.sub("", text).strip()
        for secret in self._secrets:
            text = text.replace(secret, _MASK)
        return text


class LineWriter(io.TextIOBase):
    """A text stream whose lines become log lines: what `print` writes to."""

    encoding = "utf-8"

    def __init__(self, handler: JsonHandler, name: str, level: str) -> None:
        super().__init__()
        self._handler = handler
        self._name = name
        self._level = level
        self._pending = threading.local()

    def writable(self) -> bool:
        """Always."""
        return True

    def fileno(self) -> int:
        """The descriptor behind, for children: what they write there becomes lines as well."""
        return 1 if self._name == "stdout" else 2

    def write(self, text: str) -> int:
        """Keep what is not yet a line; write the rest."""
        *lines, rest = (getattr(self._pending, "text", "") + text).split("\n")
        self._pending.text = rest
        for line in lines:
            self._emit(line)
        return len(text)

    def flush(self) -> None:
        """A flushed half line is a line: somebody wants it seen."""
        rest = getattr(self._pending, "text", "")
        self._pending.text = ""
        self._emit(rest)

    def _emit(self, line: str) -> None:
        # A progress bar draws over itself with carriage returns: only its last state is news.
        message = line.rstrip().rpartition("\r")[2]
        if message.strip():
            self._handler.write(self._level, self._name, message)


def _capture_native_output(handler: JsonHandler) -> None:
    """Make lines of what native code and child processes write to descriptors 1 and 2."""
    read_end, write_end = os.pipe()
    os.dup2(write_end, 1)
    os.dup2(write_end, 2)
    os.close(write_end)

    def relay() -> None:
        writer = LineWriter(handler, "native", "info")
        with os.fdopen(read_end, encoding="utf-8", errors="replace", newline="\n") as lines:
            for line in iter(lambda: lines.readline(MAX_TEXT_CHARS), ""):
                writer.write(line)
                writer.flush()

    threading.Thread(target=relay, name="native-output", daemon=True).start()


def _log_uncaught(kind: Any, error: Any, stack: Any) -> None:
    if not issubclass(kind, KeyboardInterrupt):
        logging.getLogger("tgwui_k8s").critical("uncaught", exc_info=(kind, error, stack))


def _log_uncaught_in_thread(args: threading.ExceptHookArgs) -> None:
    if args.exc_type is not SystemExit:
        _log_uncaught(args.exc_type, args.exc_value, args.exc_traceback)
