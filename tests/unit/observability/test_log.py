"""Every line of stdout is one JSON object, whatever happens."""

from __future__ import annotations

import json
import logging
import os
import re
import subprocess
import sys
import textwrap
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tgwui_k8s.observability.log import (
    MAX_TEXT_CHARS,
    LineHandler,
    event,
    line_of,
    relay_line,
    render_json,
    render_text,
    request_id_var,
    trace_id_var,
)

Lines = Callable[[], list[dict[str, Any]]]


class Unspeakable:
    """An object that cannot even be shown."""

    def __repr__(self) -> str:
        raise RuntimeError("no")


@pytest.fixture
def log(tmp_path: Path) -> Iterator[logging.Logger]:
    """A logger whose lines go to the file `lines` as JSON."""
    descriptor = os.open(tmp_path / "lines", os.O_WRONLY | os.O_CREAT)
    logger = logging.Logger("some.library")
    logger.addHandler(LineHandler(descriptor, as_json=True))
    yield logger
    os.close(descriptor)


@pytest.fixture
def lines(tmp_path: Path) -> Lines:
    """What has been written so far, parsed."""
    return lambda: [json.loads(line) for line in (tmp_path / "lines").read_bytes().splitlines()]


@pytest.fixture
def root_handler(tmp_path: Path) -> Iterator[LineHandler]:
    """Our handler as the root logger's, as `setup_logging` installs it."""
    descriptor = os.open(tmp_path / "lines", os.O_WRONLY | os.O_CREAT)
    handler = LineHandler(descriptor, as_json=True)
    logging.getLogger().addHandler(handler)
    yield handler
    logging.getLogger().removeHandler(handler)
    os.close(descriptor)


def test_a_line_has_the_fields_of_the_contract_in_order(log: logging.Logger, lines: Lines) -> None:
    """Time in RFC 3339 and UTC with milliseconds, level, logger, message, ids, then the event."""
    request_token, trace_token = request_id_var.set("r1"), trace_id_var.set("t1")
    log.info("request %s", "done", extra=event(route="/v1/x", status=200))
    request_id_var.reset(request_token)
    trace_id_var.reset(trace_token)
    (line,) = lines()
    assert list(line) == [
        "ts", "level", "logger", "msg", "request_id", "trace_id", "route", "status"
    ]  # fmt: skip
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z", line["ts"])
    assert (line["level"], line["logger"], line["msg"]) == ("info", "some.library", "request done")
    assert (line["request_id"], line["trace_id"], line["status"]) == ("r1", "t1", 200)


def test_outside_a_request_there_are_no_ids(log: logging.Logger, lines: Lines) -> None:
    """Empty fields are left out."""
    log.warning("x")
    assert set(lines()[0]) == {"ts", "level", "logger", "msg"}


@pytest.mark.parametrize(
    "value",
    [object(), Unspeakable(), {1, 2}, float("nan"), "\ud800", b"\xff", {("a", 1): 2}, 10**40],
)
def test_whatever_a_field_holds_the_line_comes_out(
    log: logging.Logger, lines: Lines, value: object
) -> None:
    """Objects, broken text, odd keys: JSON all the same, and the message is not lost."""
    log.info("odd", extra=event(value=value))
    assert lines()[0]["msg"] == "odd"


def test_wrong_arguments_of_a_log_call_are_shown(log: logging.Logger, lines: Lines) -> None:
    """A library's bad format string loses nothing and raises nothing."""
    log.info("%d of %d", "one")  # noqa: PLE1206 - the mistake is the point
    assert "one" in lines()[0]["msg"]


def test_newlines_stay_inside_the_line(log: logging.Logger, lines: Lines) -> None:
    """A message of three lines is one line of log."""
    log.info("a\nb\r\nc")
    assert [line["msg"] for line in lines()] == ["a\nb\r\nc"]


def test_a_traceback_is_a_field(log: logging.Logger, lines: Lines) -> None:
    """The stack stands in `exc`, in the same line."""
    try:
        raise ValueError("broken")
    except ValueError:
        log.exception("it failed")
    (line,) = lines()
    assert line["exc"].endswith("ValueError: broken\n")
    assert line["level"] == "error"


def test_messages_and_stacks_are_bounded(log: logging.Logger, lines: Lines) -> None:
    """A megabyte is cut; of a stack, the end stays, which says what happened."""
    try:
        raise ValueError("x" * 1_000_000 + "the end")
    except ValueError:
        log.exception("y" * 1_000_000)
    (line,) = lines()
    assert len(line["msg"]) == len(line["exc"]) == MAX_TEXT_CHARS + 1
    assert line["exc"].endswith("the end\n")


def test_a_reader_that_is_gone_is_no_error() -> None:
    """Writing into a closed pipe loses the line and raises nothing."""
    read_end, write_end = os.pipe()
    os.close(read_end)
    handler = LineHandler(write_end, as_json=True)
    handler.emit(logging.LogRecord("x", logging.INFO, "f", 1, "msg", (), None))
    os.close(write_end)


def test_a_slow_reader_of_a_non_blocking_pipe_gets_whole_lines() -> None:
    """More than the pipe holds: the rest is written when there is room again."""
    read_end, write_end = os.pipe()
    os.set_blocking(write_end, False)
    received = bytearray()
    with os.fdopen(read_end, "rb") as reader:
        thread = threading.Thread(target=lambda: received.extend(reader.read()))
        handler = LineHandler(write_end, as_json=True)
        handler.write_bytes(b"x" * 60_000 + b"\n")
        thread.start()
        handler.write_bytes(b"y" * 200_000 + b"\n")
        os.close(write_end)
        thread.join()
    assert [len(line) for line in bytes(received).splitlines()] == [60_000, 200_000]


def test_on_a_terminal_lines_are_for_humans() -> None:
    """Time, level, message, fields; the stack below."""
    record = logging.LogRecord("a.b", logging.WARNING, "f", 1, "careful", (), None)
    vars(record).update(event(status=503))
    line = line_of(record) | {"exc": "Traceback…"}
    text = render_text(line).decode()
    assert re.fullmatch(r"\d\d:\d\d:\d\d WARNING  careful  \[a\.b\] status=503\nTraceback…\n", text)


def test_colours_are_for_levels_that_matter() -> None:
    """Information is not coloured, and the colour ends where it should."""
    assert b"\x1b" not in render_text({"level": "info", "msg": "x"}, colour=True)
    assert render_text({"level": "error", "msg": "x"}, colour=True).endswith(b"\x1b[0m\n")


def test_a_relayed_line_of_ours_passes_through(root_handler: LineHandler, lines: Lines) -> None:
    """The engine's own lines keep their time, level and fields."""
    ours = {"ts": "2026-01-01T00:00:00.000Z", "level": "error", "logger": "e", "msg": "m", "x": 1}
    relay_line(render_json(ours), "engine")
    assert lines() == [ours]


@pytest.mark.parametrize(
    ("raw", "message"),
    [
        (b"ggml_init: found 1 device\n", "ggml_init: found 1 device"),
        (b"no newline", "no newline"),
        (b"\xff\xfe\n", "��"),
        (b'{"ts":"broken\n', '{"ts":"broken'),
        (b'{"other": "json"}\n', '{"other": "json"}'),
        (b" 10%\r 20%\r 30%\n", " 30%"),
        (b" 10%\r\n", " 10%"),
    ],
)
def test_anything_else_becomes_a_native_line(
    root_handler: LineHandler, lines: Lines, raw: bytes, message: str
) -> None:
    """Native chatter is wrapped, whatever bytes it is made of."""
    relay_line(raw, "engine")
    (line,) = lines()
    assert (line["logger"], line["source"], line["msg"]) == ("native", "engine", message)


@pytest.mark.parametrize("raw", [b"", b"\n", b"  \r\n"])
def test_empty_native_lines_are_dropped(
    root_handler: LineHandler, lines: Lines, raw: bytes
) -> None:
    """Blank lines say nothing."""
    relay_line(raw, "engine")
    assert lines() == []


def test_chatter_without_a_newline_does_not_swallow_a_line_of_ours(
    root_handler: LineHandler, lines: Lines
) -> None:
    """C++ that writes `loading... ` before our line: two lines come out."""
    ours = {"ts": "2026-01-01T00:00:00.000Z", "level": "info", "logger": "e", "msg": "m"}
    relay_line(b"loading... " + render_json(ours), "engine")
    assert [line["msg"] for line in lines()] == ["loading...", "m"]


def _run(script: str, log_format: str = "json") -> tuple[list[str], int]:
    """stdout lines and exit status of a process that logs as the server does."""
    prelude = f"""
        import asyncio, logging, os, sys, threading, warnings
        from tgwui_k8s.config import ObservabilitySettings
        from tgwui_k8s.observability.log import capture_native_output, setup_logging
        setup_logging(ObservabilitySettings(log_format={log_format!r}))
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(prelude) + textwrap.dedent(script)],
        capture_output=True,
        timeout=60,
        check=False,
    )
    return done.stdout.decode().splitlines(), done.returncode


def test_every_way_to_write_comes_out_as_json() -> None:
    """Loggers, warnings, print, stderr, C, child processes, threads, tasks, the last exception."""
    written, status = _run(
        """
        capture_native_output()
        logging.getLogger("library").warning("by a logger")
        warnings.warn("by a warning")
        print("by print")
        print("by print to stderr", file=sys.stderr)
        os.write(1, b"by the descriptor 1\\n")
        os.write(2, b"by the descriptor 2\\n")
        os.system("echo by a child; echo by its stderr >&2")
        def fail(): raise ValueError("by a thread")
        thread = threading.Thread(target=fail); thread.start(); thread.join()
        class Bad:
            def __del__(self): raise ValueError("by a finalizer")
        Bad()
        async def main():
            asyncio.get_running_loop().call_soon(fail_in_loop)
            await asyncio.sleep(0)
        def fail_in_loop(): raise ValueError("by the loop")
        asyncio.run(main())
        raise ValueError("by the main program")
        """
    )
    lines = [json.loads(line) for line in written]
    everything = "\n".join(line["msg"] + line.get("exc", "") for line in lines)
    for source in (
        "a logger", "a warning", "print", "print to stderr", "the descriptor 1",
        "the descriptor 2", "a child", "its stderr", "a thread", "a finalizer", "the loop",
        "the main program",
    ):  # fmt: skip
        assert f"by {source}" in everything
    assert status == 1


def test_text_mode_leaves_the_terminal_alone() -> None:
    """With text logs, what others print stays as it is."""
    written, _ = _run(
        """
        capture_native_output()
        logging.getLogger("library").warning("hello")
        os.write(1, b"as it is\\n")
        """,
        log_format="text",
    )
    assert written[0].endswith("WARNING  hello  [library]")
    assert written[1] == "as it is"


def test_uvicorns_lines_come_in_our_form_and_its_access_lines_not_at_all() -> None:
    """One line per request is ours to write."""
    written, _ = _run(
        """
        logging.getLogger("uvicorn.error").info("Started server process")
        logging.getLogger("uvicorn.access").info("GET / 200")
        """
    )
    assert [json.loads(line)["msg"] for line in written] == ["Started server process"]


def test_the_least_level_counts_for_everybody() -> None:
    """Debug lines of libraries do not come out at the default level."""
    written, _ = _run("logging.getLogger('library').debug('chatter')")
    assert written == []
