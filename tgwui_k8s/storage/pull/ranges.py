"""Bytes of a URL from one place to another, over connections that break.

The standard library's client: one thread reads one range, and nothing else is needed.
"""

from __future__ import annotations

import http.client
import logging
import threading
from collections.abc import Callable, Iterator, Mapping
from typing import IO, Any
from urllib.error import HTTPError
from urllib.parse import urlsplit, urlunsplit
from urllib.request import HTTPRedirectHandler, Request, build_opener

from tgwui_k8s import __version__
from tgwui_k8s.errors import DownloadError
from tgwui_k8s.storage.pull.snapshot import Location

TIMEOUT_SECONDS = 30.0
"""Silence after which a connection counts as broken."""
PIECE_BYTES = 1 << 20
MAX_FAILURES = 8
"""In a row, without one byte in between."""
_RETRIED_STATUSES = frozenset({408, 425, 429, 500, 502, 503, 504})
_REFUSALS = {401: "a token is needed", 403: "not allowed", 404: "not found", 410: "gone"}
FIRST_PAUSE_SECONDS = 0.25
_LONGEST_PAUSE_SECONDS = 30.0

logger = logging.getLogger(__name__)


class _Redirects(HTTPRedirectHandler):
    """Follows redirects, and shows a token to the host that it is for and to no other."""

    def redirect_request(
        self, req: Request, fp: IO[bytes], code: int, msg: str, headers: Any, newurl: str
    ) -> Request | None:
        following = super().redirect_request(req, fp, code, msg, headers, newurl)
        if following is not None and urlsplit(newurl).netloc != urlsplit(req.full_url).netloc:
            following.remove_header("Authorization")
        return following


_opener = build_opener(_Redirects())


class _BrokenError(Exception):
    """A request failed in a way that another one may not."""


def read_range(
    locate: Callable[[], Location],
    start: int,
    end: int,
    *,
    etag: str | None,
    on_bytes: Callable[[bytes, int], None],
    stop: threading.Event,
) -> None:
    """Read the bytes from `start` up to `end` and hand each piece on with its offset.

    A connection that breaks is followed by another one that goes on where it ended. Returns early
    once `stop` is set. Raises what `on_bytes` raises, and `DownloadError` for what trying again
    does not change: a refusal, another version than `etag`, a server without ranges, too many
    failures in a row.
    """
    num_failures = 0
    while start < end and not stop.is_set():
        reached = start
        try:
            for piece in _pieces(locate(), start, end, etag):
                on_bytes(piece, reached)
                reached += len(piece)
                if stop.is_set():
                    return
        except _BrokenError as error:
            num_failures = 1 if reached > start else num_failures + 1
            _pause_or_give_up(error, num_failures, stop)
        start = reached


def ask_size(location: Location) -> tuple[int | None, str | None]:
    """A file's length and ETag. Raises `DownloadError`."""
    num_failures = 0
    while True:
        try:
            with _open(location, "HEAD", {}) as response:
                length = response.headers.get("Content-Length")
                return (None if length is None else int(length)), response.headers.get("ETag")
        except _BrokenError as error:
            num_failures += 1
            _pause_or_give_up(error, num_failures, threading.Event())


def _pieces(location: Location, start: int, end: int, etag: str | None) -> Iterator[bytes]:
    """What one connection gives, the range at most. Raises `_BrokenError` where that is less."""
    with _open(location, "GET", {"Range": f"bytes={start}-{end - 1}"}) as response:
        _check_answer(location, response, start, etag)
        while start < end:
            try:
                piece = response.read(min(PIECE_BYTES, end - start))
            except (OSError, http.client.HTTPException) as error:
                raise _BrokenError(_reason(error)) from error
            if not piece:
                raise _BrokenError("the connection ended early")
            start += len(piece)
            yield piece


def _open(location: Location, method: str, headers: Mapping[str, str]) -> Any:
    all_headers = {
        "User-Agent": f"tgwui-k8s/{__version__}",
        "Accept-Encoding": "identity",
        **location.headers,
        **headers,
    }
    request = Request(location.url, headers=all_headers, method=method)  # noqa: S310 - parsed before
    try:
        return _opener.open(request, timeout=TIMEOUT_SECONDS)
    except HTTPError as error:
        error.close()
        if error.code in _RETRIED_STATUSES:
            raise _BrokenError(f"status {error.code}") from None
        raise DownloadError(
            f"{_shown(location)}: {_REFUSALS.get(error.code, 'refused')} (status {error.code})"
        ) from None
    except (OSError, http.client.HTTPException) as error:
        raise _BrokenError(_reason(error)) from error


def _check_answer(location: Location, response: Any, start: int, etag: str | None) -> None:
    """Raise `DownloadError` for other bytes than those asked for."""
    if response.status != 206 and start > 0:
        raise DownloadError(f"{_shown(location)}: the server sends no ranges")
    content_range = response.headers.get("Content-Range", "")
    if response.status == 206 and not content_range.startswith(f"bytes {start}-"):
        raise DownloadError(f"{_shown(location)}: another range than asked for: {content_range}")
    if etag is not None and response.headers.get("ETag") != etag:
        raise DownloadError(f"{_shown(location)} has changed while it was fetched: begin again")


def _pause_or_give_up(error: Exception, num_failures: int, stop: threading.Event) -> None:
    if num_failures >= MAX_FAILURES:
        raise DownloadError(f"gave up after {num_failures} failures in a row: {error}") from error
    seconds = min(FIRST_PAUSE_SECONDS * 2.0**num_failures, _LONGEST_PAUSE_SECONDS)
    logger.warning("a transfer broke, trying again in %g s: %s", seconds, error)
    stop.wait(seconds)


def _reason(error: Exception) -> str:
    return str(getattr(error, "reason", None) or error) or type(error).__name__


def _shown(location: Location) -> str:
    """The URL without passwords and signatures."""
    parts = urlsplit(location.url)
    return urlunsplit((parts.scheme, parts.netloc.rpartition("@")[2], parts.path, "", ""))
