"""`run_gateway`: the gateway process, from its first moment to its exit code."""

from __future__ import annotations

import logging
import os
import signal
import sys
import threading
from collections.abc import Sequence
from types import FrameType

from tgwui_k8s.config import Settings
from tgwui_k8s.errors import BindError, UsageError
from tgwui_k8s.listener import address_of, bind
from tgwui_k8s.observability.log import capture_native_output, event, setup_logging

EXIT_USAGE, EXIT_STARTUP = 2, 3

logger = logging.getLogger(__name__)


def run_gateway(settings: Settings, warnings: Sequence[str] = ()) -> int:
    """Serve until a signal; returns the process's exit code.

    `warnings` are about the settings. Call it once, in the main thread of a process of its own: it
    takes over signals, logging and the file descriptors 1 and 2.
    """
    if threading.current_thread() is threading.main_thread():
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, _stop_before_start)
    setup_logging(settings.observability)
    for warning in warnings:
        logger.warning("%s", warning)
    try:
        listener = bind(
            settings.server.host, settings.gateway.gateway_port, port_flag="--gateway-port"
        )
    except BindError as error:
        logger.error("%s", error)
        return EXIT_STARTUP
    capture_native_output()
    with listener:
        address = address_of(listener)
        logger.info("listening on %s", address, extra=event(url=address, pid=os.getpid()))
        # Imported here, after the port is open.
        import uvloop

        from tgwui_k8s.gateway.life_cycle import LifeCycle

        try:
            return uvloop.run(LifeCycle(settings, listener).run())
        except UsageError as error:
            logger.error("%s", error)
            return EXIT_USAGE


def _stop_before_start(number: int, frame: FrameType | None) -> None:
    sys.exit(0)
