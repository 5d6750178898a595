"""A process of rank 1 or up: loads its share of the model and computes every step with the others.

    python -m tgwui_k8s.runtime.tensor_parallel.worker

Started by `workers`; messages come through its standard input, and their end is its own. It never
outlives the engine and leaves signals meant for the group to it, as the engine does to the server.
"""

from __future__ import annotations

import ctypes
import faulthandler
import logging
import os
import signal
import sys
from pathlib import Path
from typing import BinaryIO

from tgwui_k8s.contract import ModelRunner
from tgwui_k8s.errors import StartupError
from tgwui_k8s.runtime.tensor_parallel.messages import Execute, Load, WarmUp, receive

_PR_SET_PDEATHSIG = 1
_GRACE_SECONDS = 20

logger = logging.getLogger(__name__)


def main() -> int:
    """Serve until the engine closes the pipe; the exit code."""
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda number, frame: None)
    faulthandler.enable()
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s %(name)s: %(message)s")
    return serve(sys.stdin.buffer)


def serve(pipe: BinaryIO) -> int:
    """Load what the first message says, and do what the others say."""
    first = receive(pipe)
    if not isinstance(first, Load):
        return 0
    try:
        runner = _load(first)
    except StartupError as error:
        logger.error("rank %d: %s", first.rank, error)
        _leave_the_word_to_the_engine(pipe)
        return 3
    while (message := receive(pipe)) is not None:
        if isinstance(message, Execute):
            runner.execute(message.batch)
        elif isinstance(message, WarmUp):
            runner.warm_up()
    runner.close()
    return 0


def _load(message: Load) -> ModelRunner:
    # Imported here: that takes seconds, in which a wrong start would already be over.
    from tgwui_k8s.runtime.tensor_parallel.ranks import Ranks
    from tgwui_k8s.runtime.transformers_loading import load_runner

    ranks = Ranks(message.rank, message.size)
    ranks.join(message.device_type, Path(message.meeting_file))
    request = message.request
    return load_runner(
        request, lambda _: None, loader=message.loader, options=request.options, ranks=ranks
    )


def _leave_the_word_to_the_engine(pipe: BinaryIO) -> None:
    """What fails here fails there too as a rule, and is told to the user then.

    Our death would end the engine before it has spoken.
    """
    signal.signal(signal.SIGALRM, lambda number, frame: os._exit(3))
    signal.alarm(_GRACE_SECONDS)
    while receive(pipe) is not None:
        pass


if __name__ == "__main__":
    sys.exit(main())
