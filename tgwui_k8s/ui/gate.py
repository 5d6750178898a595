"""What stands in front of everything the page serves: which paths exist, and who may ask.

Gradio brings routes for uploads, files, proxies and its queue. The page needs none of them, so
none exists here. Whatever is served carries a content security policy that keeps the browser from
asking any other host: the page works without internet, and text that a model wrote cannot send
anything away.
"""

from __future__ import annotations

from contextlib import suppress
from urllib.parse import urlsplit

from starlette.datastructures import Headers, MutableHeaders
from starlette.requests import ClientDisconnect
from starlette.responses import RedirectResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from tgwui_k8s.ui.cookies import session_cookie
from tgwui_k8s.ui.keys import ANONYMOUS, Keyring
from tgwui_k8s.ui.proxy import error_answer

PAGE_HEADER = "x-tgwui-page"
"""On every request that our script makes: other sites' pages cannot send it."""

OPEN = frozenset({"/login", "/theme.css", "/favicon.ico"})
OPEN_FOLDERS = ("/assets/", "/static/")
"""The login and files that are the same for everybody; they hold nothing of anybody's."""

PROTECTED = frozenset({"/", "/logout"})
PROTECTED_FOLDERS = ("/page/",)
"""Nothing is below `/api`: proxies such as Kong take that prefix for the API, and strip it."""

POLICY = "; ".join(
    (
        "default-src 'self'",
        "script-src 'self' 'unsafe-inline' 'unsafe-eval'",  # Gradio compiles its events' scripts
        "style-src 'self' 'unsafe-inline'",
        "img-src 'self' data: blob:",
        "font-src 'self' data:",
        "object-src 'none'",
        "base-uri 'self'",
        "form-action 'self'",
        "frame-ancestors 'none'",
    )
)
HEADERS = {
    "content-security-policy": POLICY,
    "referrer-policy": "same-origin",
    "x-content-type-options": "nosniff",
    "x-robots-tag": "noindex",
}


class Gate:
    """ASGI middleware around the whole page; puts the session's `Login` into `scope["login"]`."""

    def __init__(self, app: ASGIApp, keyring: Keyring, root_path: str, pod: str) -> None:
        self._app = app
        self._keyring = keyring
        self._root_path = root_path
        self._headers = {**HEADERS, "x-tgwui-pod": pod}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Plain ASGI."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        path = self._strip(scope["path"])
        scope = {**scope, "path": path, "raw_path": path.encode()}
        refusal = self._refuse(scope, Headers(scope=scope))
        # Who goes away in the middle of a request is not a fault of ours to log.
        with suppress(ClientDisconnect):
            await (refusal or self._app)(scope, receive, self._with_headers(path, send))

    def _strip(self, path: str) -> str:
        """The path without our prefix, whether or not the proxy has stripped it already."""
        prefix = self._root_path
        if prefix and (path == prefix or path.startswith(f"{prefix}/")):
            path = path[len(prefix) :]
        return path or "/"

    def _refuse(self, scope: Scope, headers: Headers) -> Response | None:
        """The answer for who may not come in; None lets the request through."""
        path, method = scope["path"], scope["method"]
        is_open = path in OPEN or path.startswith(OPEN_FOLDERS)
        if not (is_open or path in PROTECTED or path.startswith(PROTECTED_FOLDERS)):
            return error_answer(404, "not_found", "There is nothing here.")
        if method not in ("GET", "HEAD") and _comes_from_elsewhere(path, headers):
            return error_answer(403, "cross_site", "Only the page itself may ask for this.")
        login = self._keyring.session(session_cookie(headers))
        if login is None and self._keyring.is_open:
            login = ANONYMOUS
        if login is not None:
            scope["login"] = login
            return None
        if is_open:
            return None
        if path == "/":
            return RedirectResponse(f"{self._root_path}/login", status_code=303)
        return error_answer(401, "session_ended", "Log in first.")

    def _with_headers(self, path: str, send: Send) -> Send:
        # Our script has the same address in every version; what Gradio serves has not.
        fresh = {"cache-control": "no-cache"} if path.startswith("/page/") else {}

        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(raw=list(message["headers"]))
                for name, value in (self._headers | fresh).items():
                    headers.setdefault(name, value)
                message = {**message, "headers": headers.raw}
            await send(message)

        return send_with_headers


def _comes_from_elsewhere(path: str, headers: Headers) -> bool:
    """Whether another site's page could have sent this: a form it may, our header it may not."""
    if path != "/login":
        return PAGE_HEADER not in headers
    if "origin" not in headers:
        return False  # no browser
    # Without ports: proxies such as Kong leave theirs out.
    hosts = {_hostname(headers.get(name, "")) for name in ("host", "x-forwarded-host")}
    return _hostname(headers["origin"].partition("://")[2]) not in hosts - {""}


def _hostname(host: str) -> str:
    """Without the port; of what several proxies have said, the first one's."""
    try:
        return urlsplit(f"//{host.partition(',')[0].strip()}").hostname or ""
    except ValueError:
        return ""
