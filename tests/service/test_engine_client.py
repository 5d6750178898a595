"""The engine client with a real engine process behind it, on the fake loader."""

from __future__ import annotations

import asyncio
import errno
import os
import signal
import socket
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path

import pytest

from tests.helpers.engine_processes import (
    SETTINGS,
    fake_model,
    is_running,
    make_request,
    tokens_without_processes,
    until,
)
from tgwui_k8s.contract import GenerationRequest, LoadProgress, LoadRequest, TokenDelta
from tgwui_k8s.engine.client import EngineClient, Phase
from tgwui_k8s.engine.messages import EngineSettings
from tgwui_k8s.errors import (
    DrainingError,
    EngineUnavailableError,
    LoaderUnavailableError,
    ModelNotReadyError,
    OverloadedError,
    StartupError,
)

SLOW = {"tokens_per_second": 50}
"""Fast enough for a test, slow enough to be in the middle of something."""

MakeEngine = Callable[..., EngineClient]


@pytest.fixture(name="make_engine")
async def _make_engine() -> AsyncIterator[MakeEngine]:
    """Clients that are closed after the test."""
    clients: list[EngineClient] = []

    def make(**options: object) -> EngineClient:
        client = EngineClient(**options)
        clients.append(client)
        return client

    yield make
    for client in clients:
        await client.close()


@pytest.fixture(name="engine")
async def _engine(make_engine: MakeEngine) -> EngineClient:
    """The fake model, loaded, as fast as it goes."""
    engine = make_engine()
    await engine.load(fake_model(), SETTINGS)
    return engine


async def collect(
    engine: EngineClient, request: GenerationRequest
) -> tuple[dict[int, list[int]], list[TokenDelta]]:
    """Tokens by choice, and all deltas."""
    tokens: dict[int, list[int]] = {}
    deltas = []
    async for some in engine.generate(request):
        deltas += some
        for delta in some:
            tokens.setdefault(delta.index, []).extend(delta.token_ids)
    return tokens, deltas


async def in_the_middle(engine: EngineClient, request_id: str = "r") -> Awaitable[list[TokenDelta]]:
    """A request that has had its first tokens and wants many more: the rest of it."""
    stream = engine.generate(make_request(request_id, max_tokens=200))
    await stream.__anext__()

    async def rest() -> list[TokenDelta]:
        return [delta async for deltas in stream for delta in deltas]

    return asyncio.create_task(rest())


def pid_of(engine: EngineClient) -> int:
    """Its process id, which must be there."""
    assert engine.pid is not None
    return engine.pid


# ---------------------------------------------------------------------------------- generating


async def test_tokens_are_those_of_the_engine_alone(engine: EngineClient) -> None:
    """The way through two processes changes nothing."""
    request = make_request("hello", max_tokens=20, num_choices=2, temperature=1.0)

    tokens, deltas = await collect(engine, request)

    assert tokens == tokens_without_processes(request)
    assert [delta.finish_reason for delta in deltas if delta.finish_reason] == ["length"] * 2


async def test_many_requests_at_once_get_what_each_gets_alone(engine: EngineClient) -> None:
    """Tokens of concurrent requests are not mixed up, on more requests than rows."""
    requests = [make_request(f"request {number}") for number in range(30)]

    results = await asyncio.gather(*(collect(engine, request) for request in requests))

    for request, (tokens, _) in zip(requests, results, strict=True):
        assert tokens == tokens_without_processes(request)


async def test_info_and_figures_are_known(engine: EngineClient) -> None:
    """What the routes and metrics report comes with the model and with every step."""
    assert engine.info is not None
    assert engine.info.architecture == "Fake"
    await collect(engine, make_request("hello", max_tokens=5))
    await until(lambda: engine.stats.num_requests_running == 0)

    assert engine.stats.generation_tokens == 5
    assert engine.stats.prompt_tokens == 5
    assert engine.health.alive


async def test_slow_consumer_gets_everything_in_fewer_deltas(engine: EngineClient) -> None:
    """What was produced while nobody looked comes as one delta."""
    request = make_request("slow", max_tokens=100)
    stream = engine.generate(request)
    deltas = await stream.__anext__()
    await until(lambda: engine.stats.generation_tokens == 100)
    deltas += await stream.__anext__()

    tokens = [token for delta in deltas for token in delta.token_ids]
    assert tokens == tokens_without_processes(request)[0]
    assert len(deltas) == 2


async def test_closing_early_aborts_the_request(make_engine: MakeEngine) -> None:
    """A client that goes away leaves nothing running, and others do not notice."""
    engine = make_engine()
    await engine.load(fake_model(**SLOW), SETTINGS)
    stream = engine.generate(make_request("gone", max_tokens=200))
    await stream.__anext__()
    assert engine.stats.num_requests_running == 1

    await stream.aclose()
    await until(lambda: engine.stats.num_requests_running == 0)

    request = make_request("stays")
    assert (await collect(engine, request))[0] == tokens_without_processes(request)


async def test_aborted_choice_ends_and_the_other_goes_on(make_engine: MakeEngine) -> None:
    """A stop string ends one choice; the request ends with the last one."""
    engine = make_engine()
    await engine.load(fake_model(**SLOW), SETTINGS)
    request = make_request("two", max_tokens=30, num_choices=2)
    tokens: dict[int, list[int]] = {0: [], 1: []}
    async for deltas in engine.generate(request):
        for delta in deltas:
            tokens[delta.index].extend(delta.token_ids)
        if len(tokens[0]) == 3:
            engine.abort_choice("two", 0)
    engine.abort_choice("two", 1)
    engine.abort_choice("unknown", 0)

    assert len(tokens[0]) == 3
    assert tokens[1] == tokens_without_processes(request)[1]


async def test_full_queue_rejects_the_request_alone(make_engine: MakeEngine) -> None:
    """One request too many is told so; those that wait are served."""
    engine = make_engine()
    settings = EngineSettings(max_num_seqs=1, max_waiting_requests=1)
    await engine.load(fake_model(**SLOW), settings)
    running = engine.generate(make_request("running", max_tokens=5))
    await running.__anext__()
    waiting = asyncio.create_task(collect(engine, make_request("waiting")))
    await until(lambda: engine.stats.num_requests_waiting == 1)

    with pytest.raises(OverloadedError, match="full"):
        await collect(engine, make_request("refused"))

    assert len([deltas async for deltas in running]) >= 1
    assert (await waiting)[0] == tokens_without_processes(make_request("waiting"))


async def test_ending_all_requests_gives_each_the_error(make_engine: MakeEngine) -> None:
    """When the drain time is up, clients learn why; the engine is free again."""
    engine = make_engine()
    await engine.load(fake_model(**SLOW), SETTINGS)
    rests = [await in_the_middle(engine, name) for name in ("a", "b")]

    engine.abort_all(DrainingError("time is up"))

    for rest in rests:
        with pytest.raises(DrainingError):
            await rest
    await until(lambda: engine.stats.num_requests_running == 0)


# ------------------------------------------------------------------------------------- loading


async def test_phases_and_progress_are_told(make_engine: MakeEngine) -> None:
    """Whoever watches sees the model come and go."""
    engine = make_engine()
    phases: list[Phase] = []
    progress: list[LoadProgress] = []
    engine.on_phase, engine.on_progress = phases.append, progress.append

    await engine.load(fake_model(load_seconds=0.3, load_bytes=900), SETTINGS)
    await engine.unload()

    assert phases == ["loading", "ready", "stopped"]
    assert {item.phase for item in progress} == {"loading", "warming_up"}
    assert progress[0] == LoadProgress("loading", 0, 900)
    assert progress[-1] == LoadProgress("warming_up", 900, 900)
    assert engine.load_seconds >= 0.3


async def test_failure_to_load_keeps_its_class_and_words(make_engine: MakeEngine) -> None:
    """The error is the one raised in the engine process; nothing is left of that process."""
    engine = make_engine()

    with pytest.raises(LoaderUnavailableError, match="'nonsense' is unknown"):
        await engine.load(LoadRequest(model_path="x", loader="nonsense"), SETTINGS)
    with pytest.raises(StartupError, match=r"^out of order$"):
        await engine.load(fake_model(fail_load="out of order"), SETTINGS)

    assert engine.phase == "stopped"
    assert engine.pid is None
    with pytest.raises(ModelNotReadyError):
        await collect(engine, make_request("r"))


async def test_process_killed_while_loading_is_a_failed_load(make_engine: MakeEngine) -> None:
    """An OOM kill during loading has its likely cause in the error."""
    engine = make_engine(max_restarts=3)
    loading = asyncio.create_task(engine.load(fake_model(load_seconds=60), SETTINGS))
    await until(lambda: engine.pid is not None)
    os.kill(pid_of(engine), signal.SIGKILL)

    with pytest.raises(StartupError, match=r"SIGKILL.*out of memory.*while loading"):
        await loading


async def test_cancelled_load_leaves_no_process(make_engine: MakeEngine) -> None:
    """SIGTERM while loading does not wait for the weights."""
    engine = make_engine()
    loading = asyncio.create_task(engine.load(fake_model(load_seconds=60), SETTINGS))
    await until(lambda: engine.pid is not None)
    pid = pid_of(engine)
    loading.cancel()
    await asyncio.wait((loading,))

    assert loading.cancelled()
    assert not is_running(pid)
    assert engine.phase == "stopped"


async def test_another_model_comes_in_another_process(engine: EngineClient) -> None:
    """The old process is gone before the new model is there; its requests get an error."""
    rest = await in_the_middle(engine)
    old = pid_of(engine)

    await engine.load(fake_model(eos_every=1), SETTINGS)

    assert not is_running(old)
    assert pid_of(engine) != old
    with pytest.raises(ModelNotReadyError, match="unloaded"):
        await rest
    _, deltas = await collect(engine, make_request("r"))
    assert [delta.finish_reason for delta in deltas] == ["stop"]


async def test_unloading_frees_the_process(engine: EngineClient) -> None:
    """Nothing is left, and that is not ill health."""
    pid = pid_of(engine)
    await engine.unload()

    assert not is_running(pid)
    assert engine.info is None
    assert engine.health.alive


# ---------------------------------------------------------------------------------------- death


@pytest.mark.parametrize(
    ("fault", "words"),
    [
        ({"crash_after_steps": 5}, r"crashed \(SIGABRT\)"),
        ({"error_after_steps": 5}, "exited with code 1"),
        ({}, r"killed \(SIGKILL\): out of memory\?"),
    ],
    ids=["native crash", "exception in a step", "kill -9"],
)
async def test_death_of_the_engine_is_told_to_everybody_at_once(
    fault: dict[str, int], words: str, make_engine: MakeEngine
) -> None:
    """Requests in flight get what was produced and then the reason; new ones get it at once."""
    engine = make_engine()
    await engine.load(fake_model(**SLOW, **fault), SETTINGS)
    rest = await in_the_middle(engine)
    pid = pid_of(engine)
    if not fault:
        os.kill(pid, signal.SIGKILL)

    with pytest.raises(EngineUnavailableError, match=words):
        await rest
    with pytest.raises(EngineUnavailableError, match=words):
        await collect(engine, make_request("late"))

    assert not is_running(pid)
    assert not engine.health.alive
    assert engine.health.reason
    assert engine.stats.num_requests_running == 0
    assert engine.info is None


async def test_dead_engine_comes_back_as_often_as_allowed(make_engine: MakeEngine) -> None:
    """With restarts left it is alive but not ready, then ready; without, it is dead."""
    engine = make_engine(max_restarts=1)
    phases: list[Phase] = []
    engine.on_phase = phases.append
    await engine.load(fake_model(**SLOW), SETTINGS)
    rest = await in_the_middle(engine)

    os.kill(pid_of(engine), signal.SIGKILL)
    with pytest.raises(EngineUnavailableError):
        await rest
    assert engine.phase == "restarting"
    assert engine.health.alive
    with pytest.raises(EngineUnavailableError, match="restarts"):
        await collect(engine, make_request("between"))
    await until(lambda: engine.phase == "ready")
    request = make_request("after")
    assert (await collect(engine, request))[0] == tokens_without_processes(request)
    os.kill(pid_of(engine), signal.SIGKILL)
    await until(lambda: engine.phase == "dead")

    assert not engine.health.alive
    assert phases == ["loading", "ready", "restarting", "ready", "dead"]


async def test_engine_that_does_not_start_again_is_given_up(
    make_engine: MakeEngine, tmp_path: Path
) -> None:
    """A restart that fails counts as one; the last failure is the reason."""
    flag = tmp_path / "fail"
    command = (sys.executable, "-c", FAILS_IF_FLAG.format(flag=str(flag)))
    engine = make_engine(max_restarts=2, command=command)
    await engine.load(fake_model(), SETTINGS)
    flag.touch()

    os.kill(pid_of(engine), signal.SIGKILL)
    await until(lambda: engine.phase == "dead")

    assert "exited with code 9, while loading" in engine.health.reason


async def test_an_engine_without_a_socket_is_given_up(
    make_engine: MakeEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A server out of file descriptors is dead, not restarting for ever."""
    engine = make_engine(max_restarts=1)
    await engine.load(fake_model(), SETTINGS)

    def fail() -> None:
        raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))

    monkeypatch.setattr(socket, "socketpair", fail)
    os.kill(pid_of(engine), signal.SIGKILL)
    await until(lambda: engine.phase == "dead")

    assert "cannot start the engine process: [Errno 24]" in engine.health.reason


FAILS_IF_FLAG = """
import os, runpy
if os.path.exists({flag!r}):
    os._exit(9)
runpy.run_module("tgwui_k8s.engine.process", run_name="__main__", alter_sys=True)
"""


async def test_hung_engine_is_ended_by_the_watchdog(make_engine: MakeEngine) -> None:
    """A step that never ends, with work pending, is death: nothing waits for it."""
    engine = make_engine(watchdog_seconds=0.5)
    await engine.load(fake_model(**SLOW, hang_after_steps=5), SETTINGS)
    rest = await in_the_middle(engine)
    pid = pid_of(engine)

    with pytest.raises(EngineUnavailableError, match="hangs: with work pending"):
        await rest

    await until(lambda: not is_running(pid))
    assert "hangs" in engine.health.reason


async def test_idle_engine_is_not_taken_for_hung(make_engine: MakeEngine) -> None:
    """Longer without work than the watchdog allows with it, and still well."""
    engine = make_engine(watchdog_seconds=0.2)
    await engine.load(fake_model(), SETTINGS)
    await asyncio.sleep(1.5)

    assert engine.phase == "ready"
    assert (await collect(engine, make_request("r")))[0]


async def test_signals_for_the_group_do_not_reach_the_engine(engine: EngineClient) -> None:
    """Ctrl-C and SIGTERM are the API process's to answer."""
    for number in (signal.SIGINT, signal.SIGTERM):
        os.kill(pid_of(engine), number)

    assert os.getpgid(pid_of(engine)) != os.getpgid(0)
    assert (await collect(engine, make_request("r")))[0]


async def test_engine_dies_with_the_api_process() -> None:
    """An API process that is killed leaves no engine behind."""
    parent = await asyncio.create_subprocess_exec(
        sys.executable, "-c", PARENT, stdout=asyncio.subprocess.PIPE
    )
    assert parent.stdout is not None
    pid = int(await parent.stdout.readline())
    assert is_running(pid)
    parent.kill()
    await parent.communicate()

    await until(lambda: not is_running(pid))


PARENT = """
import asyncio
from tests.helpers.engine_processes import SETTINGS, fake_model
from tgwui_k8s.engine.client import EngineClient

async def main():
    engine = EngineClient()
    await engine.load(fake_model(), SETTINGS)
    print(engine.pid, flush=True)
    await asyncio.sleep(60)

asyncio.run(main())
"""


# ---------------------------------------------------------------------------------- what it sees


async def test_engine_process_gets_no_keys_and_no_torch(
    make_engine: MakeEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Arguments and environment carry no settings; the fake loader needs no torch."""
    monkeypatch.setenv("TGWUI_API_KEY", "sk-secret")
    engine = make_engine()
    await engine.load(fake_model(), SETTINGS)
    process = Path(f"/proc/{pid_of(engine)}")

    assert b"TGWUI_" not in (process / "environ").read_bytes()
    assert b"secret" not in (process / "cmdline").read_bytes()
    assert "libtorch" not in (process / "maps").read_text()
