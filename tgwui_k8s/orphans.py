"""What process 1 of a container owes to processes that lost their parent: to collect them."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable

INTERVAL_SECONDS = 5.0


async def reap_orphans(own_child: Callable[[], int | None]) -> None:
    """Collect dead orphans until cancelled; returns at once where we are not process 1.

    The child whose process id `own_child` returns is left to who waits for it.
    """
    while os.getpid() == 1:
        collect_dead(own_child())
        await asyncio.sleep(INTERVAL_SECONDS)


def collect_dead(spared: int | None) -> list[int]:
    """Collect every child that has ended, but the spared one; returns their process ids."""
    collected = []
    while (pid := _next_dead()) is not None and pid != spared:
        os.waitpid(pid, os.WNOHANG)
        collected.append(pid)
    return collected


def _next_dead() -> int | None:
    """A child that has ended, without collecting it."""
    try:
        found = os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)
    except ChildProcessError:
        return None
    return None if found is None else found.si_pid
