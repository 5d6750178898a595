"""One server with the demo model for all client libraries."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.helpers.server_process import ServerProcess


@pytest.fixture(name="server", scope="session")
def _server() -> Iterator[ServerProcess]:
    flags = ("--model", "demo", "--loader", "auto", "--max-num-seqs", "8", "--num-threads", "2")
    with ServerProcess(*flags, "--max-model-len", "512") as server:
        yield server.wait_until_ready()
