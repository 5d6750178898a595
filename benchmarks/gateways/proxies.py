"""The gateway and its peers, each as a process on one core, before the same engine."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import psutil

from benchmarks.gateways.engine import MODEL

PEERS = Path(".venv-peers")
_START_SECONDS = 120.0

_NGINX = """
daemon off; worker_processes 1; pid {folder}/nginx.pid; error_log {folder}/nginx.log;
events {{ worker_connections 16384; }}
http {{
  access_log {folder}/nginx-access.log;
  client_body_temp_path {folder}/body; proxy_temp_path {folder}/proxy;
  fastcgi_temp_path {folder}/f; uwsgi_temp_path {folder}/u; scgi_temp_path {folder}/s;
  upstream engine {{ server 127.0.0.1:{engine}; keepalive 512; }}
  server {{
    listen 127.0.0.1:{port} backlog=4096;
    keepalive_requests 1000000;
    location / {{
      proxy_pass http://engine; proxy_http_version 1.1; proxy_set_header Connection "";
      proxy_buffering off; proxy_read_timeout 600s;
    }}
  }}
}}
"""

_ENVOY = """
static_resources:
  listeners:
  - address: {{socket_address: {{address: 127.0.0.1, port_value: {port}}}}}
    filter_chains:
    - filters:
      - name: envoy.filters.network.http_connection_manager
        typed_config:
          "@type": "{api}.network.http_connection_manager.v3.HttpConnectionManager"
          stat_prefix: x
          access_log:
          - name: envoy.access_loggers.file
            typed_config:
              "@type": type.googleapis.com/envoy.extensions.access_loggers.file.v3.FileAccessLog
              path: {folder}/envoy-access.log
          route_config:
            virtual_hosts:
            - name: all
              domains: ["*"]
              routes: [{{match: {{prefix: /}}, route: {{cluster: engine, timeout: 0s}}}}]
          http_filters:
          - name: envoy.filters.http.router
            typed_config:
              "@type": "{api}.http.router.v3.Router"
  clusters:
  - name: engine
    connect_timeout: 2s
    circuit_breakers:
      thresholds: [{{max_connections: 16384, max_requests: 16384, max_pending_requests: 16384}}]
    load_assignment:
      cluster_name: engine
      endpoints:
      - lb_endpoints:
        - endpoint: {{address: {{socket_address: {{address: 127.0.0.1, port_value: {engine}}}}}}}
"""

_ENVOY_API = "type.googleapis.com/envoy.extensions.filters"

_LITELLM = """
model_list:
- model_name: {model}
  litellm_params: {{model: openai/{model}, api_base: "http://127.0.0.1:{engine}/v1", api_key: none}}
litellm_settings: {{telemetry: false}}
general_settings: {{dangerously_permit_weak_or_unset_master_key: true}}
"""


class Server:
    """A process that listens on `port`, pinned to one core."""

    def __init__(self, port: int, command: list[str], core: int, log: Path) -> None:
        self.port = port
        environment = {**os.environ, "LITELLM_LOCAL_MODEL_COST_MAP": "True", "NO_DOCS": "True"}
        with log.open("wb") as file:
            self._process = subprocess.Popen(
                command,
                stdout=file,
                stderr=file,
                env=environment,
                preexec_fn=lambda: os.sched_setaffinity(0, {core}),
            )
        self._log = log
        self._until_it_listens()

    def _until_it_listens(self) -> None:
        deadline = time.monotonic() + _START_SECONDS
        while time.monotonic() < deadline:
            if self._process.poll() is not None:
                break
            try:
                socket.create_connection(("127.0.0.1", self.port), timeout=1).close()
            except OSError:
                time.sleep(0.05)
            else:
                return
        told = self._log.read_text(errors="replace")[-2000:]
        raise RuntimeError(f"it does not listen:\n{told}")

    @property
    def cpu_seconds(self) -> float:
        """Processor time so far, with its children's."""
        return sum(sum(one.cpu_times()[:2]) for one in self._family())

    @property
    def memory_mb(self) -> float:
        """Resident, with its children's."""
        return sum(one.memory_info().rss for one in self._family()) / 1e6

    @property
    def num_files(self) -> int:
        """Open files and sockets."""
        return sum(one.num_fds() for one in self._family())

    def stop(self) -> None:
        """Kill it."""
        for one in self._family():
            one.kill()
        self._process.wait()

    def _family(self) -> list[psutil.Process]:
        mine = psutil.Process(self._process.pid)
        return [mine, *mine.children(recursive=True)]


@dataclass(frozen=True)
class Proxy:
    """One column of the table."""

    name: str
    command: Callable[[int, int, Path], list[str]]
    """From its port, the engine's, and a folder."""
    is_there: Callable[[], bool]
    how_to_get: str
    pace: float = 1.0
    """Share of the load that it gets, where it could not bear all of it."""


def free_port() -> int:
    """A port that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def engine_command(port: int) -> list[str]:
    """The fake engine."""
    return [sys.executable, "-m", "benchmarks.gateways.engine", str(port)]


def _ours(port: int, engine: int, folder: Path) -> list[str]:
    flags = f"--port {port} --endpoint http://127.0.0.1:{engine} --max-endpoint-requests 10000"
    return [sys.executable, "-m", "tgwui_k8s", "gateway", *flags.split()]


def _nginx(port: int, engine: int, folder: Path) -> list[str]:
    path = folder / "nginx.conf"
    path.write_text(_NGINX.format(port=port, engine=engine, folder=folder))
    return ["nginx", "-p", str(folder), "-c", str(path)]


def _envoy(port: int, engine: int, folder: Path) -> list[str]:
    path = folder / "envoy.yaml"
    path.write_text(_ENVOY.format(port=port, engine=engine, folder=folder, api=_ENVOY_API))
    program = str(PEERS / "envoy/bin/envoy")
    return [
        program,
        "-c",
        str(path),
        "--concurrency",
        "1",
        "-l",
        "warning",
        "--use-dynamic-base-id",
    ]


def _litellm(port: int, engine: int, folder: Path) -> list[str]:
    path = folder / "litellm.yaml"
    path.write_text(_LITELLM.format(model=MODEL, engine=engine))
    program = str(PEERS / "litellm/bin/litellm")
    return [program, "--config", str(path), "--port", str(port), "--host", "127.0.0.1"]


PROXIES = (
    Proxy("this gateway", _ours, lambda: True, ""),
    Proxy(
        "nginx", _nginx, lambda: shutil.which("nginx") is not None, "apt-get install nginx-light"
    ),
    Proxy("Envoy", _envoy, (PEERS / "envoy/bin/envoy").exists, "make bench-peer PEER=envoy"),
    Proxy(
        "LiteLLM",
        _litellm,
        (PEERS / "litellm/bin/litellm").exists,
        "make bench-peer PEER=litellm",
        pace=0.1,
    ),
)
