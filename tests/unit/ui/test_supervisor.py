"""The page's process: started late, started again, ended with the server, never in the way."""

from __future__ import annotations

import asyncio
import logging
import socket
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest

from tgwui_k8s.config import ServerSettings, Settings, WebuiSettings
from tgwui_k8s.listener import bind
from tgwui_k8s.ui import supervisor
from tgwui_k8s.ui.supervisor import PageSupervisor

WAITS = """
import json, sys
told = json.loads(sys.stdin.readline())
print("started", *told["api_keys"], flush=True)
sys.stdin.read()
open(sys.argv[1], "w").write("ended")
"""
HANGS = """
import json, os, sys, time
told = json.loads(sys.stdin.readline())
open(sys.argv[1], "a").write("x")
os.write(told["heartbeat"], b".")
time.sleep(600)
"""
DIES = "import sys; open(sys.argv[1], 'a').write('x'); sys.exit(7)"


@pytest.fixture(name="api")
def _api() -> Iterator[socket.socket]:
    with bind("127.0.0.1", 0) as listener:
        yield listener


@pytest.fixture(autouse=True)
def _installed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(supervisor.importlib.util, "find_spec", lambda name: object())


def settings(port: int = 0, *, webui: bool = True) -> Settings:
    return Settings(
        server=ServerSettings(api_key=("sk-secret",)),
        webui=WebuiSettings(webui=webui, webui_port=port),
    )


def command(script: str, file: Path) -> list[str]:
    return [sys.executable, "-c", script, str(file)]


def loaded() -> asyncio.Future[None]:
    future = asyncio.get_running_loop().create_future()
    future.set_result(None)
    return future


def runs(process: psutil.Process) -> bool:
    try:
        return bool(process.status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False


async def until(condition: Callable[[], object]) -> None:
    for _ in range(2000):
        if condition():
            return
        await asyncio.sleep(0.01)
    raise AssertionError("it never happened")


async def test_it_starts_when_the_engine_is_ready_and_ends_politely(
    api: socket.socket, tmp_path: Path
) -> None:
    """No process before; keys go over stdin alone; the end of stdin ends it."""
    file = tmp_path / "ended"
    page = PageSupervisor(settings(), api, command(WAITS, file))
    loading = asyncio.get_running_loop().create_future()
    running = asyncio.create_task(page.run(loading))
    await asyncio.sleep(0.05)
    assert page.pid is None
    loading.set_result(None)
    await until(lambda: page.pid is not None)

    process = psutil.Process(page.pid)
    assert "sk-secret" not in f"{process.cmdline()}{process.environ()}"
    assert process.environ()["GRADIO_ANALYTICS_ENABLED"] == "False"
    await page.close()
    await asyncio.wait_for(running, 10)
    assert file.read_text() == "ended"
    assert page.pid is None


async def test_a_server_that_could_not_load_starts_no_page(
    api: socket.socket, tmp_path: Path
) -> None:
    """It is about to end."""
    failed = asyncio.get_running_loop().create_future()
    failed.set_exception(RuntimeError("no such model"))
    file = tmp_path / "starts"

    await asyncio.wait_for(PageSupervisor(settings(), api, command(DIES, file)).run(failed), 10)
    assert not file.exists()


async def test_a_page_that_dies_is_started_again(
    api: socket.socket,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Each time after a longer delay, and its port stays ours."""
    monkeypatch.setattr(supervisor, "FIRST_DELAY_SECONDS", 0.01)
    file = tmp_path / "starts"
    page = PageSupervisor(settings(), api, command(DIES, file))
    running = asyncio.create_task(page.run(loaded()))
    await until(lambda: file.is_file() and file.read_text().startswith("xxx"))
    running.cancel()
    await asyncio.gather(running, return_exceptions=True)

    messages = [record for record in caplog.records if "starting it again" in record.message]
    delays = [record.args[0] for record in messages]  # type: ignore[index]
    assert delays[:2] == [0.01, 0.02]


@pytest.mark.parametrize("script", [HANGS, "import time; time.sleep(600)"])
async def test_a_page_that_hangs_is_started_again(
    api: socket.socket,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    script: str,
) -> None:
    """Its process is there but does not beat: any more, or at all."""
    monkeypatch.setattr(supervisor, "FIRST_DELAY_SECONDS", 0.01)
    monkeypatch.setattr(supervisor, "LONGEST_SILENCE_SECONDS", 0.05)
    if script != HANGS:
        monkeypatch.setattr(supervisor, "LONGEST_START_SECONDS", 0.05)
    page = PageSupervisor(settings(), api, command(script, tmp_path / "starts"))
    running = asyncio.create_task(page.run(loaded()))
    await until(lambda: caplog.text.count("the web page hangs") >= 2)
    running.cancel()
    await asyncio.gather(running, return_exceptions=True)
    assert "starting it again" in caplog.text


async def test_cancelling_leaves_nothing_behind(api: socket.socket, tmp_path: Path) -> None:
    """A server that must go takes the page along."""
    page = PageSupervisor(settings(), api, command(WAITS, tmp_path / "ended"))
    running = asyncio.create_task(page.run(loaded()))
    await until(lambda: page.pid is not None)
    process = psutil.Process(page.pid)
    running.cancel()
    await asyncio.gather(running, return_exceptions=True)
    await until(lambda: not runs(process))


@pytest.mark.parametrize("reason", ["switched off", "not installed", "port taken", "no program"])
async def test_without_a_page_the_server_goes_on(
    api: socket.socket,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    reason: str,
) -> None:
    """One line says why there is none, and nothing where nobody wants one."""
    caplog.set_level(logging.INFO)
    wanted = settings(webui=reason != "switched off")
    if reason == "port taken":
        wanted = settings(api.getsockname()[1])
    if reason == "not installed":
        monkeypatch.setattr(supervisor.importlib.util, "find_spec", lambda name: None)
    page = PageSupervisor(wanted, api, ["/no/such/program"])
    running = asyncio.create_task(page.run(loaded()))
    if reason == "no program":
        await until(lambda: "starting it again" in caplog.text)
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)
    else:
        await asyncio.wait_for(running, 10)

    said = [record.message for record in caplog.records]
    expected = {
        "switched off": [],
        "not installed": ["no web page: the extra 'ui' is not installed"],
        "port taken": ["no web page: cannot listen", "--webui-port"],
        "no program": ["cannot start the web page", "starting it again"],
    }[reason]
    assert len(said) == {"switched off": 0, "no program": 2}.get(reason, 1)
    assert all(part in " ".join(said) for part in expected)
