"""A real Prometheus, scraping whom it is told; its queries are answered as in a cluster."""

from __future__ import annotations

import shutil
import socket
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml

from tests.helpers.server_process import wait_until

SCRAPE_SECONDS = 1


class PrometheusProcess:
    """`targets`: pod name to `host:port`. A context manager that leaves nothing."""

    def __init__(self, folder: Path, targets: Mapping[str, str], namespace: str) -> None:
        program = shutil.which("prometheus")
        if program is None:
            pytest.skip("needs prometheus")
        with socket.create_server(("127.0.0.1", 0)) as free:
            port = free.getsockname()[1]
        scrapes = [
            {"targets": [target], "labels": {"namespace": namespace, "pod": pod}}
            for pod, target in targets.items()
        ]
        configuration = {
            "global": {"scrape_interval": f"{SCRAPE_SECONDS}s"},
            "scrape_configs": [{"job_name": "engines", "static_configs": scrapes}],
        }
        (folder / "prometheus.yaml").write_text(yaml.safe_dump(configuration))
        self.url = f"http://127.0.0.1:{port}"
        self._http = httpx.Client(timeout=30, trust_env=False)
        self._process = subprocess.Popen(
            [
                program,
                f"--config.file={folder / 'prometheus.yaml'}",
                f"--storage.tsdb.path={folder / 'data'}",
                f"--web.listen-address=127.0.0.1:{port}",
            ],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )

    def __enter__(self) -> PrometheusProcess:
        wait_until(self._is_ready)
        return self

    def __exit__(self, *exception: object) -> None:
        self._http.close()
        self._process.terminate()
        self._process.wait(30)

    def query(self, expression: str) -> dict[str, float]:
        """The expression's value now, by pod."""
        answer = self._http.get(f"{self.url}/api/v1/query", params={"query": expression}).json()
        assert answer["status"] == "success", answer
        found: list[dict[str, Any]] = answer["data"]["result"]
        return {one["metric"]["pod"]: float(one["value"][1]) for one in found}

    def _is_ready(self) -> bool:
        try:
            return self._http.get(f"{self.url}/-/ready").status_code == 200
        except httpx.TransportError:
            return False
