"""A channel in memory, for hosts of a model without a process around them."""

from __future__ import annotations

from collections.abc import Iterator

from tgwui_k8s.engine.messages import FromEngine, Shutdown, ToEngine


class ScriptedChannel:
    """Hands out messages, a batch of them per step, then the end."""

    def __init__(self, *steps: list[ToEngine]) -> None:
        self._steps = [*steps]
        self.sent: list[FromEngine] = []

    def drain(self, *, wait: bool) -> Iterator[ToEngine]:
        """See `EngineChannel.drain`."""
        if self._steps:
            yield from self._steps.pop(0)
        elif wait:
            yield Shutdown()

    def send(self, message: FromEngine) -> None:
        """Keep it in `sent`."""
        self.sent.append(message)
