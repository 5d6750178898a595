"""Logging in with an API key or the admin key, and out again."""

from __future__ import annotations

import asyncio
from html import escape
from pathlib import Path
from string import Template
from urllib.parse import parse_qs

from starlette.requests import Request
from starlette.responses import HTMLResponse, RedirectResponse, Response
from starlette.routing import BaseRoute, Route

from tgwui_k8s.ui.cookies import clear_session, set_session
from tgwui_k8s.ui.keys import Keyring
from tgwui_k8s.ui.small_body import small_body
from tgwui_k8s.ui.words import words_for

MAX_FORM_BYTES = 16 * 1024
WRONG_KEY_SECONDS = 0.5
"""Whoever guesses waits."""

_PAGE = Template((Path(__file__).parent / "static" / "login.html").read_text(encoding="utf-8"))


def login_routes(keyring: Keyring, root_path: str) -> list[BaseRoute]:
    """`/login` as a page without a script, and `/logout`."""

    async def show(request: Request) -> Response:
        return _page(request, root_path)

    async def login(request: Request) -> Response:
        found = keyring.login(await _key(request))
        if found is None:
            await asyncio.sleep(WRONG_KEY_SECONDS)
            return _page(request, root_path, problem="login_wrong_key")
        response = RedirectResponse(f"{root_path}/", status_code=303)
        set_session(response, keyring.cookie(found), request.headers, root_path)
        return response

    async def logout(request: Request) -> Response:
        response = Response(status_code=204)
        clear_session(response, root_path)
        return response

    return [
        Route("/login", show, methods=["GET"]),
        Route("/login", login, methods=["POST"]),
        Route("/logout", logout, methods=["POST"]),
    ]


async def _key(request: Request) -> str:
    """The form's only field, without what surrounds a pasted key; empty for anything else."""
    content = await small_body(request, MAX_FORM_BYTES)
    fields = parse_qs((content or b"").decode("utf-8", "replace"))
    return fields.get("key", [""])[0].strip()


def _page(request: Request, root_path: str, *, problem: str = "") -> HTMLResponse:
    language, words = words_for(request.headers.get("accept-language", ""))
    page = _PAGE.substitute(
        language=language,
        action=escape(f"{root_path}/login"),
        title=escape(words["login_title"]),
        explanation=escape(words["login_explanation"]),
        label=escape(words["login_key"]),
        button=escape(words["login_button"]),
        problem=escape(words[problem]) if problem else "",
    )
    headers = {"cache-control": "no-store"}
    return HTMLResponse(page, status_code=401 if problem else 200, headers=headers)
