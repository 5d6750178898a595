"""A model on a slow, read-only network file system, as EFS is one."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from benchmarks.load.slow_mount import slow_mount, why_not
from tests.helpers.server_process import ServerProcess, wait_until
from tgwui_k8s import demo
from tgwui_k8s.storage.mounts import network_file_system
from tgwui_k8s.storage.prefetch import is_kept
from tgwui_k8s.storage.weights import find_weights

_REASON = why_not()
pytestmark = pytest.mark.skipif(_REASON is not None, reason=str(_REASON))


@pytest.mark.parametrize("keeps_pages", [True, False])
def test_what_is_not_kept_is_not_read_ahead(tmp_path: Path, keeps_pages: bool) -> None:
    """Some FUSE mounts forget a file when it is opened again: it would be read twice."""
    (tmp_path / "weights").write_bytes(bytes(2 << 20))
    with slow_mount(tmp_path, 4 << 20, keeps_pages=keeps_pages) as folder:
        assert is_kept(folder / "weights") is keeps_pages


def test_the_probe_tells_how_far_reading_is(tmp_path: Path) -> None:
    """By itself a FUSE mount is read ahead: bytes grow up to the true total, then it is ready."""
    shutil.copytree(demo.model_path(), tmp_path / "slow")
    total = find_weights(tmp_path / "slow").num_bytes
    with slow_mount(tmp_path / "slow", total // 2) as folder:
        assert network_file_system(folder) is not None
        flags = ("--loader", "auto", "--model", str(folder))
        with ServerProcess(*flags) as server:
            seen: list[tuple[str, int, int]] = []

            def is_ready() -> bool:
                body = server.get("/health/startup").json()
                seen.append((body["phase"], body["bytes_read"], body["bytes_total"]))
                return bool(body["phase"] == "ready")

            wait_until(is_ready, seconds=60)
            assert server.complete().status_code == 200
    read_ahead = [(num_bytes, of) for phase, num_bytes, of in seen if phase == "prefetching" and of]
    counts = [num_bytes for num_bytes, _ in read_ahead]
    assert counts == sorted(counts)
    assert {of for _, of in read_ahead} == {total}
    assert any(0 < count < total for count in counts)
