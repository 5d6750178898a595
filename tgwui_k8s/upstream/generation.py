"""Hooks for generation: errors leave the thread that met them, and every way to stop is heard."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

_ATTRIBUTE = "tgwui_k8s_error"


class Stopped(ValueError):  # noqa: N818 - no error: it carries a wish through the library
    """Raised by a token's callback to end a generation, and by nothing else.

    A ValueError, because early versions of upstream raise and catch that one: a model's own
    ValueErrors were taken for a stop.
    """


def keep(iterator: Any) -> None:
    """In the thread that computes, in an `except` block: note the error for the reader."""
    setattr(iterator, _ATTRIBUTE, sys.exc_info()[1])


def raise_kept(iterator: Any) -> None:
    """At the end of `iterator`: raise what the thread has noted, if it has."""
    error = getattr(iterator, _ATTRIBUTE, None)
    if error is not None:
        raise error


def stops(criterion: Callable[..., Any], state: dict[str, Any]) -> Any:
    """Upstream's stopping criterion (the flag for everybody), or this request's own event.

    Later versions hand an event in `state` that is set when the client is gone; the Transformers
    loaders never looked at it.
    """
    event: Any = state.get("stop_event")
    if event is None:
        return criterion
    upstreams: Any = type(criterion)

    class Either(upstreams):  # type: ignore[misc]  # upstream's class, known at run time
        def __call__(self, *args: Any, **kwargs: Any) -> Any:
            return event.is_set() or criterion(*args, **kwargs)

    return Either()
