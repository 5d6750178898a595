"""Logs: one JSON object per line on stdout, or readable lines on a terminal.

Standard library logging, because every library already speaks it: one handler on the root logger
renders whatever arrives. An event's own fields travel in `extra`:

    logger.info("request finished", extra=event(route="/v1/completions", status=200))

Native libraries write past Python, straight to file descriptors 1 and 2. `capture_native_output`
puts a pipe there and `relay_line` turns what comes out into lines like all others; the same
function relays the lines of a child process.
"""

from __future__ import annotations

import atexit
import logging
import os
import select
import sys
import threading
import traceback
from collections.abc import Mapping
from contextvars import ContextVar
from datetime import datetime, timezone
from types import TracebackType
from typing import Any

import msgspec

from tgwui_k8s.config import ObservabilitySettings

request_id_var: ContextVar[str | None] = ContextVar("request_id", default=None)
trace_id_var: ContextVar[str | None] = ContextVar("trace_id", default=None)

MAX_TEXT_CHARS = 16_384
"""Longest message, field or traceback of a line; what goes beyond it is cut."""

Line = dict[str, Any]
"""One log line before it is rendered."""

_FIRST_BYTES = b'{"ts":"'
_EVENT = "tgwui_event"
_PATIENCE_SECONDS = 1.0
_NO_COLOUR = "\x1b[0m"
_COLOURS = {"debug": "\x1b[2m", "warning": "\x1b[33m", "error": "\x1b[31m", "critical": "\x1b[31m"}

logger = logging.getLogger(__name__)


def event(**fields: Any) -> dict[str, Any]:
    """Event fields of a log call: `logger.info("…", extra=event(status=200))`."""
    return {_EVENT: fields}


# --------------------------------------------------------------------------------- rendering


def line_of(record: logging.LogRecord) -> Line:
    """A log record as the fields of its line, in the order they are written."""
    line: Line = {
        "ts": _timestamp(record.created),
        "level": record.levelname.lower(),
        "logger": record.name,
        "msg": _message(record),
    }
    request_id, trace_id = request_id_var.get(), trace_id_var.get()
    if request_id is not None:
        line["request_id"] = request_id
    if trace_id is not None:
        line["trace_id"] = trace_id
    line.update(getattr(record, _EVENT, {}))
    if record.exc_info and record.exc_info[0] is not None:
        line["exc"] = _last_chars("".join(traceback.format_exception(*record.exc_info)))
    elif record.stack_info:
        line["exc"] = _last_chars(record.stack_info)
    return line


def render_json(line: Mapping[str, Any]) -> bytes:
    """The line as JSON with a newline. Whatever JSON cannot say becomes its `repr`."""
    try:
        return msgspec.json.encode(line, enc_hook=repr) + b"\n"
    except Exception:  # noqa: BLE001 - a log line must come out whatever is in it
        return msgspec.json.encode({key: _as_text(value) for key, value in line.items()}) + b"\n"


def render_text(line: Mapping[str, Any], *, colour: bool = False) -> bytes:
    """The line for a human: time, level, message, then the fields."""
    rest = dict(line)
    time_of_day = str(rest.pop("ts", ""))[11:19]
    level = str(rest.pop("level", "info"))
    logger_name, message = rest.pop("logger", ""), rest.pop("msg", "")
    stack = rest.pop("exc", None)
    fields = "".join(f" {key}={value}" for key, value in rest.items())
    text = f"{time_of_day} {level.upper():<8} {message}  [{logger_name}]{fields}"
    if colour and level in _COLOURS:
        text = f"{_COLOURS[level]}{text}{_NO_COLOUR}"
    if stack is not None:
        text = f"{text}\n{stack}"
    return text.encode("utf-8", "backslashreplace") + b"\n"


class LineHandler(logging.Handler):
    """Writes every record as one line to a file descriptor. Never raises."""

    def __init__(self, descriptor: int, *, as_json: bool) -> None:
        super().__init__()
        self.descriptor = descriptor
        self.as_json = as_json
        # Reentrant: a finalizer may log while this very thread writes.
        self._writing = threading.RLock()
        self._colour = not as_json and os.isatty(descriptor) and "NO_COLOR" not in os.environ

    def emit(self, record: logging.LogRecord) -> None:
        """Render and write one record."""
        try:
            self.write(line_of(record))
        except Exception:  # noqa: BLE001 - logging must never bring down what it reports on
            self.write(_own_line("error", __name__, f"A log call failed at {record.pathname!r}."))

    def write(self, line: Mapping[str, Any]) -> None:
        """Render and write one line."""
        if self.as_json:
            self.write_bytes(render_json(line))
        else:
            self.write_bytes(render_text(line, colour=self._colour))

    def write_bytes(self, data: bytes) -> None:
        """Write finished bytes; a reader that is gone or asleep, or a full disk, loses the line."""
        with self._writing:
            try:
                while data:
                    data = data[self._write_some(data) :]
            except OSError:
                return

    def _write_some(self, data: bytes) -> int:
        try:
            return os.write(self.descriptor, data)
        except BlockingIOError:
            # Whoever shares the descriptor has made it non-blocking.
            select.select([], [self.descriptor], [], _PATIENCE_SECONDS)
            return os.write(self.descriptor, data)


# ------------------------------------------------------------------------------------ set-up


def setup_logging(settings: ObservabilitySettings) -> None:
    """Send every log record, warning and uncaught exception of this process to stdout.

    Call once, first thing. uvicorn must be given `log_config=None`, so that its lines come here.
    """
    root = logging.getLogger()
    root.handlers = [LineHandler(1, as_json=_wants_json(settings))]
    root.setLevel(settings.log_level.upper())
    logging.captureWarnings(True)
    logging.lastResort = None
    for name in ("uvicorn", "uvicorn.error", "uvicorn.access", "uvicorn.asgi", "py.warnings"):
        library = logging.getLogger(name)
        library.handlers = []
        library.propagate = True
    # One line per request is ours to write, with the fields that uvicorn does not know.
    logging.getLogger("uvicorn.access").disabled = True
    sys.excepthook = _log_uncaught
    sys.unraisablehook = _log_unraisable
    threading.excepthook = _log_uncaught_in_thread


def capture_native_output() -> None:
    """Turn whatever is written to file descriptors 1 and 2 into log lines of logger `native`.

    Does nothing where logs are text for a terminal. Lines in flight at a normal exit still come
    out; a crash of this very process can lose its last words, so native code that may crash
    belongs into a child whose output is relayed.
    """
    handler = _handler()
    if handler is None or not handler.as_json:
        return
    handler.descriptor = os.dup(1)
    stderr = os.dup(2)
    read_end, write_end = os.pipe()
    for standard in (1, 2):
        os.dup2(write_end, standard)
    os.close(write_end)
    relay = threading.Thread(
        target=_relay_pipe, args=(read_end,), name="native-output", daemon=True
    )
    relay.start()

    def restore() -> None:
        for stream in (sys.stdout, sys.stderr):
            stream.flush()
        os.dup2(handler.descriptor, 1)
        os.dup2(stderr, 2)
        relay.join(timeout=1.0)

    atexit.register(restore)


def relay_line(raw: bytes, source: str) -> None:
    """Log one line that another process or native code of this one wrote.

    A line that is already one of ours passes through unchanged; anything else becomes the message
    of a line of logger `native` with the field `source`.
    """
    handler = _handler()
    if handler is None:
        return
    start = raw.find(_FIRST_BYTES)
    line = _decode(raw[start:]) if start >= 0 else None
    chatter = raw if line is None else raw[:start]
    # A progress bar draws over itself with carriage returns: only its last state is a message.
    message = chatter.decode("utf-8", "replace").rstrip().rpartition("\r")[2]
    if message:
        handler.write(_own_line("info", "native", _first_chars(message)) | {"source": source})
    if line is not None:
        handler.write(line)


def _relay_pipe(descriptor: int) -> None:
    with os.fdopen(descriptor, "rb") as lines:
        for raw in iter(lambda: lines.readline(MAX_TEXT_CHARS), b""):
            relay_line(raw, "api")


def _handler() -> LineHandler | None:
    """Our handler, where `setup_logging` has run."""
    return next((h for h in logging.getLogger().handlers if isinstance(h, LineHandler)), None)


def _wants_json(settings: ObservabilitySettings) -> bool:
    if settings.log_format == "auto":
        return not os.isatty(1)
    return settings.log_format == "json"


# ------------------------------------------------------------------------ what nobody caught


def _log_uncaught(
    kind: type[BaseException], error: BaseException, stack: TracebackType | None
) -> None:
    if issubclass(kind, KeyboardInterrupt):
        return
    logger.critical("uncaught exception", exc_info=(kind, error, stack))


def _log_uncaught_in_thread(args: threading.ExceptHookArgs) -> None:
    if args.exc_type is SystemExit or args.exc_value is None:
        return
    name = args.thread.name if args.thread is not None else "?"
    logger.critical(
        "uncaught exception in thread %s",
        name,
        exc_info=(args.exc_type, args.exc_value, args.exc_traceback),
    )


def _log_unraisable(args: sys.UnraisableHookArgs) -> None:
    value = args.exc_value or args.exc_type()
    logger.error(
        "%s",
        args.err_msg or "exception ignored",
        exc_info=(args.exc_type, value, args.exc_traceback),
    )


# ----------------------------------------------------------------------------------- details


def _own_line(level: str, logger_name: str, message: str) -> Line:
    now = datetime.now(timezone.utc).timestamp()
    return {"ts": _timestamp(now), "level": level, "logger": logger_name, "msg": message}


def _timestamp(seconds: float) -> str:
    moment = datetime.fromtimestamp(seconds, tz=timezone.utc)
    return moment.isoformat(timespec="milliseconds").replace("+00:00", "Z")


def _message(record: logging.LogRecord) -> str:
    try:
        return _first_chars(record.getMessage())
    except Exception:  # noqa: BLE001 - wrong arguments of a library's log call
        return _first_chars(f"{record.msg!r} {record.args!r}")


def _decode(raw: bytes) -> Line | None:
    try:
        line = msgspec.json.decode(raw)
    except (msgspec.DecodeError, UnicodeDecodeError):
        return None
    return line if isinstance(line, dict) else None


def _as_text(value: Any) -> str:
    try:
        text = value if isinstance(value, str) else repr(value)
    except Exception:  # noqa: BLE001 - a __repr__ of somebody else
        text = f"<{type(value).__name__}>"
    return text.encode("utf-8", "backslashreplace").decode()


def _first_chars(text: str) -> str:
    return text if len(text) <= MAX_TEXT_CHARS else text[:MAX_TEXT_CHARS] + "…"


def _last_chars(text: str) -> str:
    return text if len(text) <= MAX_TEXT_CHARS else "…" + text[-MAX_TEXT_CHARS:]
