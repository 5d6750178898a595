"""The session's cookie on its way in and out."""

from __future__ import annotations

from starlette.datastructures import Headers
from starlette.requests import cookie_parser
from starlette.responses import Response

from tgwui_k8s.ui.keys import COOKIE, SESSION_SECONDS


def session_cookie(headers: Headers) -> str | None:
    """What the browser sent under our name."""
    return cookie_parser(headers.get("cookie", "")).get(COOKIE)


def set_session(response: Response, value: str, headers: Headers, root_path: str) -> None:
    """Scripts cannot read it, other sites' forms do not send it, HTTPS keeps it."""
    # Of several proxies the first is the one that the browser asked.
    scheme = headers.get("x-forwarded-proto", "http").partition(",")[0].strip()
    response.set_cookie(
        COOKIE,
        value,
        max_age=SESSION_SECONDS,
        path=root_path or "/",
        httponly=True,
        samesite="lax",
        secure=scheme == "https",
    )


def clear_session(response: Response, root_path: str) -> None:
    """Forget it."""
    response.delete_cookie(COOKIE, path=root_path or "/", httponly=True, samesite="lax")
