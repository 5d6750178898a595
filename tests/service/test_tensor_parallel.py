"""A server whose model lies on two ranks: it answers, and they end together."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Iterator

import pytest

from tests.helpers.engine_processes import is_running
from tests.helpers.server_process import ServerProcess, wait_until
from tests.helpers.versions import needs_transformers

pytestmark = needs_transformers("5")

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

    def worker(self) -> int | None:
        """The process of rank 1, while there is one."""
        living = [child for child in self.children() if is_running(child.pid)]
        found = [child.pid for child in living if WORKER in child.cmdline()]
        return found[0] if found else None

    def is_ready(self) -> bool:
        return self.get("/health/ready").status_code == 200


@pytest.fixture(name="server")
def _server() -> Iterator[TwoRanks]:
    with TwoRanks("--restart-engine", "1") as server:
        yield server


def test_rank_that_dies_ends_the_engine_and_a_stop_ends_all(server: TwoRanks) -> None:
    """The engine says which rank died, is started again whole, and SIGTERM leaves nobody."""
    wait_until(server.is_ready, seconds=120)
    answer = server.complete("Once upon a time")
    engine, worker = server.engine.pid, server.worker()
    assert worker is not None
    os.kill(worker, signal.SIGKILL)
    wait_until(lambda: not is_running(engine), seconds=60)
    wait_until(lambda: server.worker() is not None and server.is_ready(), seconds=120)
    again = server.complete("Once upon a time")
    ranks = [server.engine.pid, server.worker() or 0]
    os.kill(ranks[1], signal.SIGTERM)
    server.signal(signal.SIGTERM)

    assert answer.json()["choices"][0]["text"] == again.json()["choices"][0]["text"]
    assert worker != ranks[1]
    assert server.wait() == 0
    assert any("rank 1 ended (signal 9)" in entry["msg"] for entry in server.log)
    assert not any(is_running(pid) for pid in ranks)
