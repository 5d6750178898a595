"""`run_server`: the API process, from its first moment to its exit code.

The port is bound before anything heavy is imported, so that whoever connects waits for an answer
instead of being refused. What happens then is in `life_cycle`.
"""

from __future__ import annotations

import logging
import os
import signal
import sys
import threading
from collections.abc import Sequence
from types import FrameType

from tgwui_k8s.config import Settings
from tgwui_k8s.errors import BindError
from tgwui_k8s.garbage_collection import collect_seldom
from tgwui_k8s.listener import address_of, bind
from tgwui_k8s.observability.log import capture_native_output, event, setup_logging

EXIT_STARTUP = 3

logger = logging.getLogger(__name__)


def run_server(settings: Settings, warnings: Sequence[str] = ()) -> int:
    """Serve until a signal; returns the process's exit code (see api.md).

    `warnings` are about the settings; they are logged, since there is no log before.
    Call it once, in the main thread of a process of its own: it takes over signals, logging, the
    umask and the file descriptors 1 and 2.
    """
    if threading.current_thread() is threading.main_thread():
        # Until the event loop answers signals: as process 1 we would not even get them.
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, _stop_before_start)
    collect_seldom()
    os.umask(0o002)
    setup_logging(settings.observability)
    for warning in warnings:
        logger.warning("%s", warning)
    try:
        listener = bind(settings.server.host, settings.server.port)
    except BindError as error:
        logger.error("%s", error)
        return EXIT_STARTUP
    capture_native_output()
    with listener:
        address = address_of(listener)
        logger.info("listening on %s", address, extra=event(url=address))
        # Imported here, after the port is open: the event loop, the HTTP server, the metrics.
        from tgwui_k8s.life_cycle import run_until_stopped

        return run_until_stopped(settings, listener)


def _stop_before_start(number: int, frame: FrameType | None) -> None:
    sys.exit(0)
