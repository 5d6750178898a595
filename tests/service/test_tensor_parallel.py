"""A server whose model lies on two ranks: it answers, and they end together."""

from __future__ import annotations

import signal
import sys
from collections.abc import Iterator

import psutil
import pytest

from tests.helpers.server_process import ServerProcess, wait_until

WORKER = "tgwui_k8s.runtime.tensor_parallel.worker"


class TwoRanks(ServerProcess):
    """`tgwui-k8s serve` of the demo model with a rank beside the engine."""

    @staticmethod
    def command_line(*flags: str, options: object = None) -> list[str]:
        """The loader is inferred."""
        return [
            *(sys.executable, "-m", "tgwui_k8s", "serve", "--port", "0", "--no-webui"),
            *("--device", "cpu", "--dtype", "float32", "--tensor-parallel-size", "2"),
            *("--num-threads", "1", "--max-num-seqs", "4", "--max-model-len", "256"),
            *("--kv-cache-memory", "32MiB", *flags),
        ]

    def worker(self) -> psutil.Process:
        """The process of rank 1."""
        (found,) = (child for child in self.children() if WORKER in child.cmdline())
        return found


@pytest.fixture(name="server")
def _server() -> Iterator[TwoRanks]:
    with TwoRanks("--restart-engine", "1") as server:
        yield server


def test_rank_that_dies_ends_the_engine_and_a_stop_ends_all(server: TwoRanks) -> None:
    """The engine says which rank died, is started again whole, and SIGTERM leaves nobody."""
    wait_until(lambda: server.get("/health/ready").status_code == 200, seconds=120)
    answer = server.complete("Once upon a time")
    engine, worker = server.engine, server.worker()
    worker.kill()
    wait_until(lambda: not engine.is_running(), seconds=60)
    wait_until(lambda: server.get("/health/ready").status_code == 200, seconds=120)
    again = server.complete("Once upon a time")
    ranks = [server.engine, server.worker()]
    ranks[1].send_signal(signal.SIGTERM)
    server.signal(signal.SIGTERM)

    assert answer.json()["choices"][0]["text"] == again.json()["choices"][0]["text"]
    assert worker.pid != ranks[1].pid
    assert server.wait() == 0
    assert any("rank 1 ended (signal 9)" in entry["msg"] for entry in server.log)
    assert not any(process.is_running() for process in ranks)
