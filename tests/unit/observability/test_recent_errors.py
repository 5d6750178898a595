"""What is remembered of the errors that clients got."""

from __future__ import annotations

import itertools

from tgwui_k8s.errors import InvalidRequestError, OverloadedError
from tgwui_k8s.observability import recent_errors
from tgwui_k8s.observability.recent_errors import RecentErrors


def errors() -> RecentErrors:
    """With a clock that strikes at every look."""
    return RecentErrors(itertools.count(100.0).__next__)


def test_errors_alike_are_counted() -> None:
    """By route, status and code; the newest kind first, with its first and its last time."""
    seen = errors()
    seen.note("/a", 503, OverloadedError("full"), "r0")
    seen.note("/a", 400, InvalidRequestError("'my secret' is wrong", param="secret"), "r1")
    seen.note("/a", 503, OverloadedError("still full"), "r2")
    seen.note("/b", 503, OverloadedError("full"), "r3")

    newest = seen.newest_first()
    assert [(one.route, one.status, one.code, one.count) for one in newest] == [
        ("/b", 503, "overloaded", 1),
        ("/a", 503, "overloaded", 2),
        ("/a", 400, None, 1),
    ]
    assert (newest[1].first_seen, newest[1].last_seen) == (100.0, 102.0)
    assert newest[1].last_request_id == "r2"
    assert newest[2].type == "invalid_request_error"
    assert "secret" not in str(newest)


def test_the_oldest_kind_gives_way() -> None:
    """However many there are."""
    seen = errors()
    for number in range(recent_errors.MOST_KINDS + 1):
        seen.note(f"/{number}", 503, OverloadedError("full"), "r")

    routes = [one.route for one in seen.newest_first()]
    assert len(routes) == recent_errors.MOST_KINDS
    assert "/0" not in routes
