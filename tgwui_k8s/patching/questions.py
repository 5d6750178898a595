"""What a patched server must be able to answer, asked over HTTP and by signals. Black box.

`tgwui-k8s upstream verify` asks those of the abilities that are applied; `patches/test_upstream.sh`
asks all of them before patching as well, where they must fail: patches/README.md has the table.
"""

from __future__ import annotations

import concurrent.futures
import json
import socket
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from tgwui_k8s.patching.site import (
    BROKEN_MODEL,
    KEY,
    MODEL,
    MissingDependencyError,
    Reply,
    Server,
    Site,
)

_WORDS = "word0 word1 word2 word3"
_SLOW_WORDS = " ".join(f"word{number}" for number in range(20))
_WITH_MODEL = ("--model", MODEL)
_ANY_HOST = "10.1.2.3:5000"


@dataclass(frozen=True)
class Question:
    """One, of one ability. `ask` raises AssertionError, or OSError, where the answer is wrong."""

    ability: str
    text: str
    ask: Callable[[Site], None]


@dataclass(frozen=True)
class Outcome:
    """How a question went."""

    question: Question
    problem: str
    """Empty where all is well."""


def ask_all(site: Site, abilities: set[str]) -> Iterator[Outcome]:
    """How the questions of these abilities go, as they are asked.

    Raises `MissingDependencyError`.
    """
    for question in QUESTIONS:
        if question.ability in abilities:
            try:
                question.ask(site)
            except MissingDependencyError:
                raise
            except (AssertionError, OSError) as error:
                problem = " ".join(f"{error}".split())[:200] or type(error).__name__
                yield Outcome(question, problem)
            else:
                yield Outcome(question, "")


def _check(is_so: bool, problem: object) -> None:
    if not is_so:
        raise AssertionError(str(problem))


# -------------------------------------------------------------------------------------- probes


def _port_before_model(site: Site) -> None:
    with site.serving(*_WITH_MODEL, load_seconds=3.0) as server:
        live = server.wait("/health/live")
        _check(live.status == 200, f"/health/live: {live.status}")
        startup = server.request("GET", "/health/startup").status
        ready = server.request("GET", "/health/ready").status
        _check((startup, ready) == (503, 503), f"startup {startup}, ready {ready} while it loads")
        early = server.complete("hello")
        _check(early.status == 503, f"a request while it loads: {early.status}")
        server.wait("/health/startup", 200)
        server.wait("/health/ready", 200)


def _probes_need_nothing(site: Site) -> None:
    with site.serving(*_WITH_MODEL) as server:
        _ready(server)
        for path in ("/health/live", "/health/startup", "/health/ready"):
            status = server.request("GET", path, key=None, host=_ANY_HOST).status
            _check(status == 200, f"{path} without a key, by the pod's address: {status}")


def _not_ready_without_model(site: Site) -> None:
    with site.serving() as server:
        server.wait("/health/startup", 200)
        _check(server.request("GET", "/health/ready").status == 503, "ready without a model")


def _probes_while_busy(site: Site) -> None:
    with site.serving(*_WITH_MODEL) as server:
        _ready(server)
        pool = concurrent.futures.ThreadPoolExecutor(50)
        streams = [pool.submit(server.begin_stream, "slowly") for _ in range(50)]
        concurrent.futures.wait(streams, return_when=concurrent.futures.FIRST_COMPLETED)
        status = server.request("GET", "/health/live").status
        server.process.kill()  # ends the rest of them
        pool.shutdown()
    _check(status == 200, f"/health/live beside 50 streams: {status}")


def _many_streams(site: Site) -> None:
    with (
        site.serving(*_WITH_MODEL, step_seconds=0.002) as server,
        concurrent.futures.ThreadPoolExecutor(60) as pool,
    ):
        _ready(server)
        texts = [pool.submit(server.complete, "slowly", stream=True) for _ in range(60)]
        whole = [text.exception() is None and _is_whole(text.result()) for text in texts]
    _check(all(whole), f"{whole.count(False)} of 60 streams are not whole")


def _probes_while_loading_by_api(site: Site) -> None:
    with (
        site.serving(*_WITH_MODEL, load_seconds=1.5) as server,
        concurrent.futures.ThreadPoolExecutor(1) as pool,
    ):
        _ready(server)
        path, body = "/v1/internal/model/load", {"model_name": MODEL}
        load = pool.submit(server.request, "POST", path, body)
        live, ready = set(), set()
        while not load.done():
            live.add(server.request("GET", "/health/live").status)
            ready.add(server.request("GET", "/health/ready").status)
        _check(load.result().status == 200, f"the load: {load.result().text[:100]}")
    _check(live == {200} and 503 in ready, f"while a model loads: live {live}, ready {ready}")


def _port_is_fixed(site: Site) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        with site.serving(*_WITH_MODEL, port=taken.getsockname()[1]) as server:
            code = server.wait_exit()
    _check(code == 3, f"exit code {code} where the port is taken")


def _drains(site: Site) -> None:
    with site.serving(*_WITH_MODEL, step_seconds=0.15) as server:
        _ready(server)
        finish = server.begin_stream("slowly")
        server.process.terminate()
        server.wait("/health/ready", 503)
        refused = server.complete("hello")
        text = _streamed(finish())
        code = server.wait_exit()
    _check(text == _SLOW_WORDS, f"the stream was cut: {text[-30:]!r}")
    _check(refused.status == 503, f"a new request: {refused.status}")
    _check(code == 0, f"exit code {code}")


# ---------------------------------------------------------------------------------------- logs


def _logs_are_json(site: Site) -> None:
    with site.serving(*_WITH_MODEL, "--verbose") as server:
        _ready(server)
        server.complete("hello")
        server.complete("fail")
        server.end()
        lines = [line for line in server.lines if line]
    _check(len(lines) > 3, "there is no log")
    broken = [line for line in lines if not _is_log_line(line)]
    _check(not broken, f"{len(broken)} of {len(lines)} lines are no JSON, such as {broken[:1]}")
    _check(KEY not in "\n".join(lines), "the API key stands in the log")


def _is_log_line(line: str) -> bool:
    try:
        return {"ts", "level", "logger", "msg"} <= set(json.loads(line))
    except (ValueError, TypeError):
        return False


# ------------------------------------------------------------------------------------- storage


def _writes_nothing(site: Site) -> None:
    before = site.files()
    with site.serving(*_WITH_MODEL) as server:
        _ready(server)
        chat = server.request(
            "POST",
            "/v1/chat/completions",
            {"messages": [{"role": "user", "content": "hello"}], "mode": "chat"},
        )
        server.end()
    _check(chat.status == 200, f"a chat: {chat.status} {chat.text[:100]}")
    changed = sorted(path for path, facts in site.files().items() if before.get(path) != facts)
    _check(not changed, f"was written: {changed[:3]}")


# -------------------------------------------------------------------------------------- errors


def _no_model(site: Site) -> None:
    with site.serving() as server:
        server.wait("/v1/models", 200)
        for stream in (False, True):
            reply = server.complete("hello", stream=stream)
            _check(reply.status == 503, f"no model, stream {stream}: {reply.status}")
            _check(bool(reply.error_message()), f"no error object: {reply.text[:100]}")


def _failed_generation(site: Site) -> None:
    with site.serving(*_WITH_MODEL) as server:
        _ready(server)
        reply = server.complete("fail")
        _check(reply.status == 500, f"a text that failed: {reply.status} {reply.text[-120:]}")
        _check("as it was told" in reply.error_message(), f"no error object: {reply.text[:100]}")
        _check(_words(server) == _WORDS, "the next text fails as well")


def _failed_stream(site: Site) -> None:
    with site.serving(*_WITH_MODEL) as server:
        _ready(server)
        stream = server.complete("fail", stream=True)
        events = [line[5:].strip() for line in stream.text.splitlines() if line.startswith("data:")]
        _check('"error"' in "".join(events[-1:]), f"the stream ends in {events[-1:]}")
        _check(_words(server) == _WORDS, "the next text fails as well")


def _failed_load(site: Site) -> None:
    with site.serving(*_WITH_MODEL) as server:
        _ready(server)
        load = server.request("POST", "/v1/internal/model/load", {"model_name": BROKEN_MODEL})
        _check(load.status >= 400, f"the load of a broken file: {load.status} {load.text[:60]}")
        listed = server.request("GET", "/v1/models").text
        _check(BROKEN_MODEL not in listed, "a model that could not be loaded is listed")
        reply = server.complete("hello")
        _check(reply.status == 503, f"a text after that: {reply.status}")


# ------------------------------------------------------------------------------------- metrics


def _metrics(site: Site) -> None:
    with (
        site.serving(*_WITH_MODEL) as server,
        concurrent.futures.ThreadPoolExecutor(3) as pool,
    ):
        _ready(server)
        texts = [pool.submit(server.complete, "slowly", stream=True) for _ in range(3)]
        seen = set()
        while not all(text.done() for text in texts):
            page = server.request("GET", "/metrics", key=None).text
            names = ("num_requests_running", "num_requests_waiting")
            seen.add(tuple(_figure(page, name) for name in names))
            time.sleep(0.05)
        _check((1, 2) in seen, f"never 1 running and 2 waiting, of 3: {sorted(map(str, seen))}")
        page = server.request("GET", "/metrics", key=None).text
    length = len(_SLOW_WORDS) + 1
    for name, expected in (
        ("num_requests_running", 0),
        ("num_requests_waiting", 0),
        ("generation_requests_total", 3),
        ("prompt_tokens_total", 3 * len("slowly")),
        ("generation_tokens_total", 3 * length),
        ("time_to_first_token_seconds_count", 3),
        ("e2e_request_latency_seconds_count", 3),
    ):
        _check(_figure(page, name) == expected, f"tgwui_{name}: {_figure(page, name)}")


def _figure(page: str, name: str) -> float | None:
    for line in page.splitlines():
        if line.startswith((f"tgwui_{name}{{", f"tgwui_{name} ")):
            return float(line.rpartition(" ")[2])
    return None


# ------------------------------------------------------------------------------------- details


def _ready(server: Server) -> None:
    """Wait by a route that unpatched servers have too."""
    server.wait("/v1/models", 200)


def _words(server: Server) -> str:
    body = server.complete("hello").json()
    return str(body["choices"][0]["text"]).strip() if body and "choices" in body else str(body)


def _is_whole(stream: Reply) -> bool:
    return _streamed(stream.text) == _SLOW_WORDS


def _streamed(text: str) -> str:
    """The words of a stream of completions."""
    words = ""
    for line in text.splitlines():
        data = line.partition("data:")[2].strip()
        if data.startswith("{"):
            words += json.loads(data).get("choices", [{}])[0].get("text", "")
    return words.strip()


QUESTIONS = (
    Question("probes", "Is the port open before the model is loaded?", _port_before_model),
    Question("probes", "Do probes need no key and no Host header?", _probes_need_nothing),
    Question("probes", "Is a server without a model not ready?", _not_ready_without_model),
    Question("probes", "Do probes answer beside 50 streams?", _probes_while_busy),
    Question("probes", "Do 60 streams at once all end?", _many_streams),
    Question("probes", "Do probes answer while a model loads?", _probes_while_loading_by_api),
    Question("probes", "Is a port that is taken an error?", _port_is_fixed),
    Question("probes", "Does SIGTERM let streams end?", _drains),
    Question("json_logs", "Is every line JSON, without keys?", _logs_are_json),
    Question("stateless", "Does a chat write nothing beside the code?", _writes_nothing),
    Question("errors", "Is a request without a model a 503?", _no_model),
    Question("errors", "Is a text that failed a 500?", _failed_generation),
    Question("errors", "Does a stream that failed say so?", _failed_stream),
    Question("errors", "Is a load that failed an error?", _failed_load),
    Question("metrics", "Does /metrics count what runs and waits?", _metrics),
)
