"""What Kubernetes is to a gateway: an API server that shows pods, and an account to ask it with."""

from __future__ import annotations

import asyncio
import os
import ssl
import subprocess
from collections.abc import AsyncIterator, Iterable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path

from tests.helpers.kubernetes_api import KubernetesApi, endpoint_slice, pod

SELECTOR, NAMESPACE, PORT_NAME = "app=engine", "chaos", "api"

_HOST = "127.0.0.1"
_IN_POD = (
    "mount -t tmpfs none /run && mkdir -p /run/secrets/kubernetes.io && "
    'ln -s "$0" /run/secrets/kubernetes.io/serviceaccount && exec "$@"'
)


class Cluster:
    """One EndpointSlice, which is told to whoever watches it, over TLS.

    While the API server is away nothing changes: who wants to change something waits.
    """

    def __init__(self, folder: Path, port: int) -> None:
        """`port`: of every pod."""
        self._account = folder / "serviceaccount"
        self._port = port
        self._api = KubernetesApi(tls=_make_account(self._account))
        self._stack = AsyncExitStack()
        self._is_there = asyncio.Event()
        self._addresses: dict[str, str] = {}
        self._leaving: set[str] = set()

    @asynccontextmanager
    async def serve(self) -> AsyncIterator[None]:
        """Be there until the context ends."""
        try:
            await self._appear()
            yield
        finally:
            await self._stack.aclose()

    @property
    def environment(self) -> dict[str, str]:
        """What every pod's has."""
        return {
            "KUBERNETES_SERVICE_HOST": _HOST,
            "KUBERNETES_SERVICE_PORT": str(self._api.port),
        }

    def in_pod(self, command: Sequence[str]) -> list[str]:
        """The command as it runs in a pod: it sees the account where Kubernetes mounts it."""
        user = [] if os.geteuid() == 0 else ["--map-root-user"]
        return ["unshare", *user, "--mount", "sh", "-c", _IN_POD, str(self._account), *command]

    @property
    def is_there(self) -> bool:
        """Whether the API server answers."""
        return self._is_there.is_set()

    async def change(
        self,
        *,
        new: Iterable[tuple[str, str]] = (),
        leaving: Iterable[str] = (),
        gone: Iterable[str] = (),
        is_told: bool = True,
    ) -> None:
        """Pods (UID and address) come, terminate and go, all in one event.

        `is_told`: whether the event reaches those who watch; else they see it with the next one, or
        when they list again.
        """
        await self._is_there.wait()
        for uid in gone:
            self._addresses.pop(uid)
            self._leaving.discard(uid)
        self._addresses.update(new)
        self._leaving.update(leaving)
        self._api.version += 1
        self._api.slices = [shown := self._shown()]
        for watch in self._api.open_watches if is_told else ():
            watch.send("MODIFIED", shown)

    def cut_watches(self) -> None:
        """Every watch is reset, as by a load balancer that has had enough."""
        for watch in self._api.open_watches:
            watch.sever()

    async def disappear(self, seconds: float) -> None:
        """The API server is away for so long."""
        self._is_there.clear()
        await self._stack.aclose()
        await asyncio.sleep(seconds)
        await self._appear()

    async def _appear(self) -> None:
        await self._stack.enter_async_context(self._api.serve())
        self._is_there.set()

    def _shown(self) -> dict[str, object]:
        pods = [
            pod(address, uid, ready=uid not in self._leaving, terminating=uid in self._leaving)
            for uid, address in self._addresses.items()
        ]
        return endpoint_slice("engines", *pods, port=self._port)


def _make_account(folder: Path) -> ssl.SSLContext:
    """A token and a certificate in `folder`; the API server's side of the latter."""
    folder.mkdir()
    key, certificate = folder / "key.pem", folder / "ca.crt"
    curve = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-days", "2")
    name = ("-subj", "/CN=chaos", "-addext", f"subjectAltName=IP:{_HOST}")
    files = ("-keyout", str(key), "-out", str(certificate))
    command = ["openssl", "req", "-x509", *curve, *name, *files]
    subprocess.run(command, check=True, capture_output=True)
    (folder / "token").write_text("of-the-chaos-run")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)
    return context
