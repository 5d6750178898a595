"""What process 1 of a container owes to processes that lost their parent: to collect them."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable, Collection

INTERVAL_SECONDS = 5.0


async def reap_orphans(own_children: Callable[[], Collection[int]]) -> None:
    """Collect dead orphans until cancelled; returns at once where we are not process 1.

    Children whose process ids `own_children` returns are left to who waits for them.
    """
    while os.getpid() == 1:
        collect_dead(own_children())
        await asyncio.sleep(INTERVAL_SECONDS)


def collect_dead(spared: Collection[int]) -> list[int]:
    """Collect every child that has ended, but the spared ones; returns their process ids."""
    collected = []
    while (pid := _next_dead()) is not None and pid not in spared:
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
