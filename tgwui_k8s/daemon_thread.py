"""Blocking work beside the event loop, in a thread that cannot keep the process from exiting.

Work on files may hang for as long as a network file system does; a thread of the loop's own pool
would be waited for at the end.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from concurrent.futures import Future
from typing import TypeVar

_Result = TypeVar("_Result")


async def in_daemon_thread(function: Callable[[], _Result]) -> _Result:
    """Await `function()`, run in a thread; cancelling leaves the thread to itself."""
    outcome: Future[_Result] = Future()

    def work() -> None:
        if not outcome.set_running_or_notify_cancel():
            return
        try:
            result = function()
        except BaseException as error:  # noqa: BLE001 - raised again where it is awaited
            outcome.set_exception(error)
        else:
            outcome.set_result(result)

    threading.Thread(target=work, name="daemon-work", daemon=True).start()
    return await asyncio.wrap_future(outcome)
