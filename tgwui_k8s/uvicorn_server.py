"""uvicorn as every server of ours runs it: with limits, without signals or a log of its own."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Literal

import uvicorn
from starlette.types import ASGIApp

from tgwui_k8s.limited_protocol import LimitedProtocol

_KEEP_ALIVE_SECONDS = 75
"""Longer than load balancers keep idle connections, so that they close them and not we."""


class SignallessServer(uvicorn.Server):
    """uvicorn, but signals are its owner's."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Install nothing."""
        yield


def limited_config(
    app: ASGIApp,
    *,
    farewell_seconds: float,
    protocol: type[LimitedProtocol] = LimitedProtocol,
    lifespan: Literal["on", "off"] = "off",
    date_header: bool = True,
) -> uvicorn.Config:
    """What to run; told to stop, a server closes the connections left within `farewell_seconds`."""
    return uvicorn.Config(
        app,
        http=protocol,
        ws="none",
        lifespan=lifespan,
        log_config=None,
        access_log=False,
        server_header=False,
        date_header=date_header,
        proxy_headers=False,
        timeout_keep_alive=_KEEP_ALIVE_SECONDS,
        timeout_graceful_shutdown=int(farewell_seconds),
    )
