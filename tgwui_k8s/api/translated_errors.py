"""Errors about a request that was made of another API's: they name the fields the client sent."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

from tgwui_k8s.errors import InvalidRequestError

FieldNames = Mapping[str, str]
"""From how our field's path begins, as a regular expression, to the beginning of the client's.

The first that matches counts; a path without one is the same in both.
"""


@contextmanager
def naming_fields(names: FieldNames) -> Iterator[None]:
    """Around work on the request that was made: `InvalidRequestError`s get the client's names."""
    try:
        yield
    except InvalidRequestError as error:
        ours = error.param
        if ours is None:
            raise
        error.param = theirs = _client_name(ours, names)
        for before in ("'", "your "):
            error.message = error.message.replace(before + ours, before + theirs)
        raise


def _client_name(path: str, names: FieldNames) -> str:
    for ours, theirs in names.items():
        match = re.match(ours, path)
        if match is not None:
            return match.expand(theirs) + path[match.end() :]
    return path
