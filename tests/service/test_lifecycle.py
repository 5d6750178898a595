"""The life of a server: real processes, real signals, real sockets."""

from __future__ import annotations

import contextlib
import json
import os
import pty
import re
import shutil
import signal
import socket
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.helpers.server_process import (
    TIMEOUT_SECONDS,
    ServerProcess,
    completion,
    wait_until,
)

DONE = "[DONE]"


@pytest.fixture(name="servers")
def _servers() -> Iterator[contextlib.ExitStack]:
    with contextlib.ExitStack() as stack:
        yield stack


def start(servers: contextlib.ExitStack, *flags: str, **options: Any) -> ServerProcess:
    """A server that has been started, and no more."""
    return servers.enter_context(ServerProcess(*flags, **options))


def start_ready(servers: contextlib.ExitStack, *flags: str, **options: Any) -> ServerProcess:
    """A server with its model loaded."""
    return start(servers, *flags, **options).wait_until_ready()


def at_speed(tokens_per_second: float, **options: object) -> dict[str, object]:
    """Options of the fake loader."""
    return {"tokens_per_second": tokens_per_second, **options}


def error_in(event: str) -> dict[str, Any]:
    """The error of a stream's last event."""
    error: dict[str, Any] = json.loads(event)["error"]
    return error


def only_error(server: ServerProcess) -> str:
    """The message of the log's one error line, which has no traceback."""
    (entry,) = (entry for entry in server.log if entry["level"] in ("error", "critical"))
    assert "exc" not in entry
    assert server.errors == b""
    return str(entry["msg"])


# --------------------------------------------------------------------------------------- start


def test_probes_answer_while_the_model_loads(servers: contextlib.ExitStack) -> None:
    """Alive from the start; started and ready when the model is there; 503 until then."""
    # On a busy machine the web framework takes seconds to import, while the engine loads.
    server = start(servers, options={"load_seconds": 10, "load_bytes": 3000})
    wait_until(lambda: server.get("/health/startup").json().get("phase") == "loading")

    live, startup = server.get("/health/live"), server.get("/health/startup")
    ready, answer = server.get("/health/ready"), server.complete()
    server.wait_until_ready()

    assert live.status_code == 200
    assert (startup.status_code, startup.json()["bytes_total"]) == (503, 3000)
    assert ready.status_code == 503
    assert (answer.status_code, answer.json()["error"]["code"]) == (503, "model_not_ready")
    assert "retry-after" in answer.headers
    assert server.get("/health/startup").json()["phase"] == "ready"
    assert server.complete().status_code == 200
    phases = [entry["phase"] for entry in server.log if "phase" in entry]
    assert phases == ["loading", "warming_up", "ready"]


def test_port_is_open_before_anything_else_and_no_torch_is_near(
    servers: contextlib.ExitStack,
) -> None:
    """The first log line is the address; the API process never maps torch."""
    server = start_ready(servers)

    assert server.log[0]["url"] == server.url
    assert "libtorch" not in Path(f"/proc/{server.process.pid}/maps").read_text()


def test_busy_port_ends_the_start_with_one_line(servers: contextlib.ExitStack) -> None:
    """Exit code 3, the port in the message, never another port."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        server = start(servers, "--port", str(port))
        code = server.wait()

    assert code == 3
    assert f"port {port}" in only_error(server)


@pytest.mark.parametrize(
    ("flags", "options", "words"),
    [
        ((), {"fail_load": "the disk is on fire"}, "the disk is on fire"),
        ((), {"nonsense": 1}, "no option 'nonsense'"),
        (("--loader", "auto", "--model", "no-such-model"), {}, "no-such-model"),
        (("--loader", "nonsense", "--model", "demo"), {}, "nonsense"),
    ],
)
def test_failing_load_ends_the_start_with_one_line(
    flags: tuple[str, ...],
    options: dict[str, object],
    words: str,
    servers: contextlib.ExitStack,
    tmp_path: Path,
) -> None:
    """Exit code 3 and the reason, without a traceback."""
    server = start(servers, *flags, options=options, cwd=tmp_path)

    assert server.wait() == 3
    assert words in only_error(server)


def test_broken_tokenizer_ends_the_start_with_one_line(
    servers: contextlib.ExitStack, tmp_path: Path
) -> None:
    """What only the API process reads counts too, and the engine is not waited for."""
    (tmp_path / "tokenizer.json").write_text("{")
    flags = ("--model", str(tmp_path))
    server = start(servers, *flags, options={"load_seconds": 3600})

    assert server.wait() == 3
    assert "tokenizer.json" in only_error(server)


@pytest.mark.parametrize("flag", ["--api-key-file", "--chat-template"])
def test_missing_file_of_a_setting_is_a_usage_error(
    flag: str, servers: contextlib.ExitStack, tmp_path: Path
) -> None:
    """Exit code 2: the operator must change a setting."""
    server = start(servers, flag, str(tmp_path / "missing"))

    assert server.wait() == 2
    assert "missing" in only_error(server)


# --------------------------------------------------------------------------------------- drain


def test_signal_lets_running_streams_finish(servers: contextlib.ExitStack) -> None:
    """Twenty streams end with [DONE]; meanwhile not ready, alive, nothing new; then exit 0."""
    server = start_ready(servers, options=at_speed(20))
    num_streams = 20
    begun = threading.Barrier(num_streams + 1)
    events: list[list[str]] = []

    def consume(number: int) -> None:
        with server.stream(f"stream {number}", max_tokens=40) as stream:
            first = next(stream)
            begun.wait(TIMEOUT_SECONDS)
            events.append([first, *stream])

    threads = [threading.Thread(target=consume, args=(number,)) for number in range(num_streams)]
    for thread in threads:
        thread.start()
    begun.wait(TIMEOUT_SECONDS)
    server.signal()
    server.wait_for_event("drain_timeout_s")
    ready, live, refused = (
        server.get("/health/ready"),
        server.get("/health/live"),
        server.complete(),
    )
    for thread in threads:
        thread.join(TIMEOUT_SECONDS)

    assert server.wait() == 0
    assert (ready.status_code, live.status_code) == (503, 200)
    assert (refused.status_code, refused.json()["error"]["code"]) == (503, "draining")
    assert "retry-after" in refused.headers
    assert refused.headers["connection"] == "close"
    assert [stream[-1] for stream in events] == [DONE] * num_streams
    for stream in events:
        tokens = [json.loads(event)["choices"][0]["text"] for event in stream[:-1]]
        assert len("".join(tokens)) == 40


def test_signal_without_requests_exits_at_once(servers: contextlib.ExitStack) -> None:
    """An idle server has nothing to wait for, and leaves no process behind."""
    server = start_ready(servers, "--drain-timeout", "3600")
    engine = server.engine
    server.signal(signal.SIGINT)

    assert server.wait() == 0
    assert not engine.is_running()


def test_signal_while_loading_exits_without_waiting_for_the_weights(
    servers: contextlib.ExitStack,
) -> None:
    """Exit 0 long before the load would end, however early the signal comes."""
    early = start(servers, options={"load_seconds": 3600})
    assert early.url
    early.signal()
    later = start(servers, options={"load_seconds": 3600})
    wait_until(lambda: later.get("/health/startup").json()["phase"] == "loading")
    engine = later.engine
    later.signal()

    assert early.wait() == 0
    assert later.wait() == 0
    assert not engine.is_running()


def test_end_of_the_drain_time_is_an_error_for_who_still_runs(
    servers: contextlib.ExitStack,
) -> None:
    """Streams get an error event and no [DONE], others a 503; the exit code is 0 all the same."""
    server = start_ready(servers, "--drain-timeout", "0.3", options=at_speed(20))
    answers: list[Any] = []
    waiting = threading.Thread(
        target=lambda: answers.append(server.complete("not streamed", max_tokens=3000))
    )
    with server.stream(max_tokens=3000) as stream:
        next(stream)
        waiting.start()
        wait_until(lambda: metric(server, "tgwui_num_requests_running") == 2)
        server.signal()
        events = list(stream)
    waiting.join(TIMEOUT_SECONDS)

    assert server.wait() == 0
    assert error_in(events[-1])["code"] == "draining"
    assert answers[0].status_code == 503
    assert answers[0].json()["error"]["code"] == "draining"


def test_second_signal_exits_now(servers: contextlib.ExitStack) -> None:
    """Somebody is in a hurry: running requests are cut off."""
    server = start_ready(servers, "--drain-timeout", "3600", options=at_speed(20))
    with server.stream(max_tokens=3000) as stream:
        next(stream)
        engine = server.engine
        server.signal()
        server.wait_for_event("drain_timeout_s")
        server.signal()

        assert server.wait() == 0
        with contextlib.suppress(Exception):
            assert DONE not in list(stream)
    wait_until(lambda: not engine.is_running())


# ------------------------------------------------------------------------------ death of the engine


def test_killed_engine_is_told_to_clients_and_kubernetes(servers: contextlib.ExitStack) -> None:
    """A clear error in the stream, 503 from /health/live, and a server that still answers."""
    server = start_ready(servers, options=at_speed(20))
    with server.stream(max_tokens=3000) as stream:
        next(stream)
        server.engine.kill()
        events = list(stream)
    error = error_in(events[-1])
    wait_until(lambda: server.get("/health/live").status_code == 503)
    refused = server.complete()

    assert error["code"] == "engine_unavailable"
    assert "SIGKILL" in error["message"]
    assert "SIGKILL" in server.get("/health/live").json()["error"]["message"]
    assert server.get("/health/ready").status_code == 503
    assert (refused.status_code, refused.json()["error"]["code"]) == (503, "engine_unavailable")
    assert metric(server, "tgwui_num_requests_running") == 0
    server.signal()
    assert server.wait() == 0


def test_engine_is_restarted_where_that_is_asked_for(servers: contextlib.ExitStack) -> None:
    """Alive and not ready, then ready with the same answers as before."""
    server = start_ready(servers, "--restart-engine", "1")
    before = server.complete().json()["choices"]
    first = server.engine
    first.kill()
    wait_until(lambda: server.get("/health/ready").status_code == 503)
    live, refused = server.get("/health/live"), server.complete()
    server.wait_until_ready()

    assert live.status_code == 200
    assert (refused.status_code, refused.json()["error"]["code"]) == (503, "engine_unavailable")
    assert server.engine.pid != first.pid
    assert server.complete().json()["choices"] == before


def test_hung_engine_is_reported(servers: contextlib.ExitStack) -> None:
    """A step that never ends makes /health/live 503; the log says where it hangs."""
    options = at_speed(20, hang_after_steps=3)
    server = start_ready(servers, "--watchdog-seconds", "0.5", options=options)
    with server.stream(max_tokens=3000) as stream:
        events = list(stream)
    wait_until(lambda: server.get("/health/live").status_code == 503)

    assert "hangs" in error_in(events[-1])["message"]
    stacks = [entry["msg"] for entry in server.log if entry["logger"] == "native"]
    assert any("_hang" in line for line in stacks)


def test_every_line_is_json_through_errors_and_a_native_crash(
    servers: contextlib.ExitStack,
) -> None:
    """Requests, refusals, a crash of native code with its stack: one object a line, no other."""
    server = start_ready(servers, "--log-level", "debug", options={"crash_after_steps": 6})
    statuses = [
        server.complete(max_tokens=2).status_code,
        server.complete(max_tokens="many").status_code,
        server.get("/no/such/route").status_code,
        server.get("/v1/completions").status_code,
        server.complete(max_tokens=50).status_code,
    ]
    with socket.create_connection(("127.0.0.1", int(server.url.rpartition(":")[2]))) as client:
        client.sendall(b"this is no HTTP\r\n\r\n")
        assert client.recv(100).startswith(b"HTTP/1.1 400")
    server.signal()

    assert server.wait() == 0
    assert statuses == [200, 400, 404, 405, 503]
    assert server.errors == b""
    assert all({"ts", "level", "logger", "msg"} <= entry.keys() for entry in server.log)
    native = [entry for entry in server.log if entry["logger"] == "native"]
    assert any("Fatal Python error: Aborted" in entry["msg"] for entry in native)
    assert any("SIGABRT" in entry["msg"] for entry in server.log)


# --------------------------------------------------------------------------------------- clients


def metric(server: ServerProcess, name: str) -> float:
    """A metric, summed over its labels."""
    pattern = rf"^{name}(?:{{[^}}]*}})? (\S+)$"
    values = re.findall(pattern, server.get("/metrics").text, re.MULTILINE)
    assert values
    return sum(map(float, values))


def test_clients_that_go_away_leave_no_trace(servers: contextlib.ExitStack) -> None:
    """Two hundred connect, ask, streaming or not, and leave: nothing runs on, and it is counted."""
    server = start_ready(servers, options=at_speed(100))
    address = ("127.0.0.1", int(server.url.rpartition(":")[2]))
    clients = []
    for number in range(200):
        body = json.dumps(completion(f"{number}", max_tokens=3000, stream=number % 2 == 0))
        head = (
            "POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
            f"Content-Length: {len(body)}\r\n\r\n"
        )
        client = socket.create_connection(address)
        client.sendall((head + body).encode())
        clients.append(client)
    wait_until(lambda: metric(server, "tgwui_num_requests_running") > 0)
    for client in clients:
        client.close()
    wait_until(lambda: metric(server, "tgwui_requests_aborted_total") == 200)
    wait_until(lambda: metric(server, "tgwui_num_requests_running") == 0)

    assert metric(server, "tgwui_num_requests_waiting") == 0
    assert metric(server, "tgwui_kv_cache_usage_perc") == 0
    assert server.complete().status_code == 200
    server.signal()
    assert server.wait() == 0


# ---------------------------------------------------------------------------------- other models


def test_model_is_changed_over_http(servers: contextlib.ExitStack, tmp_path: Path) -> None:
    """A bad name changes nothing; models come and go; having none is no illness."""
    for name in ("other", "third"):
        (tmp_path / name).mkdir()
    admin = {"Authorization": "Bearer sk-admin"}
    variables = {"TGWUI_ADMIN_KEY": "sk-admin", "TGWUI_MODEL_DIR": str(tmp_path)}
    server = start_ready(servers, environment=variables)

    def change(path: str, **body: object) -> int:
        url = f"{server.url}/v1/internal/model/{path}"
        return server.http.post(url, json=body, headers=admin).status_code

    def served() -> list[str]:
        models = server.get("/v1/models", headers=admin).json()
        return [model["id"] for model in models["data"]]

    assert served() == ["fake"]
    assert change("load", model_name="no-such-model") == 404
    assert change("load", model_name="../../etc", args={"loader": "fake"}) == 404
    assert served() == ["fake"]
    assert change("load", model_name="other", args={"loader": "fake"}) == 200
    assert served() == ["other"]
    assert change("unload") == 200
    assert server.get("/health/live").status_code == 200
    assert server.get("/health/ready").status_code == 503
    assert change("load", model_name="third", args={"loader": "fake"}) == 200
    assert served() == ["third"]
    assert len(server.children()) == 1


# ------------------------------------------------------------------------------ where it may run


def test_lines_for_a_terminal_are_for_humans(servers: contextlib.ExitStack) -> None:
    """With stdout on a terminal, lines of both processes are text."""
    ours, theirs = pty.openpty()
    with open(ours, "rb", buffering=0) as terminal:
        process = subprocess.Popen(
            ServerProcess.command_line(options={"fail_load": "not today"}),
            stdout=theirs,
            stderr=theirs,
        )
        os.close(theirs)
        written = b""
        with contextlib.suppress(OSError):  # the terminal ends with its last writer
            while data := terminal.read(4096):
                written += data

    assert process.wait(TIMEOUT_SECONDS) == 3
    assert b"listening on http://" in written
    assert b"ERROR" in written
    assert b'{"ts"' not in written


def works(*command: str) -> bool:
    """True where the command exists and succeeds."""
    return (
        shutil.which(command[0]) is not None
        and subprocess.run(command, capture_output=True, check=False).returncode == 0
    )


AS_NOBODY = (
    *("setpriv", "--reuid=54321", "--regid=54321", "--clear-groups"),
    # The interpreter of a developer may lie in a folder that others cannot enter.
    *("--inh-caps=+dac_read_search", "--ambient-caps=+dac_read_search"),
)
AS_PROCESS_1 = ("unshare", "--pid", "--fork", "--mount-proc", "--kill-child")


@pytest.mark.skipif(not works(*AS_NOBODY, "true"), reason="needs root")
def test_any_user_without_home_can_run_it(servers: contextlib.ExitStack, tmp_path: Path) -> None:
    """Only `$TMPDIR` is writable, and not even that is written to."""
    os.chown(tmp_path, 54321, 54321)
    server = start_ready(servers, prefix=AS_NOBODY, environment={"TMPDIR": str(tmp_path)}, cwd="/")

    assert server.complete().status_code == 200
    server.signal()
    assert server.wait() == 0
    assert list(tmp_path.iterdir()) == []


@pytest.mark.skipif(not works(*AS_PROCESS_1, "true"), reason="needs the right to make namespaces")
def test_it_works_as_process_1(servers: contextlib.ExitStack) -> None:
    """As a container's first process it gets SIGTERM, finishes and exits 0."""
    server = start_ready(servers, options=at_speed(20), prefix=AS_PROCESS_1)
    with server.stream(max_tokens=20) as stream:
        next(stream)
        server.children()[0].terminate()
        events = list(stream)

    assert events[-1] == DONE
    assert server.wait() == 0
