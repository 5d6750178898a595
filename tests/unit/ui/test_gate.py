"""What the page lets through, and what it sends along; the login in front of it."""

from __future__ import annotations

import httpx
import pytest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from tgwui_k8s.ui import login as login_page
from tgwui_k8s.ui.gate import Gate
from tgwui_k8s.ui.keys import COOKIE, Keyring, Login
from tgwui_k8s.ui.login import login_routes
from tgwui_k8s.ui.page_settings import PageSettings

KEY = "sk-1"
OURS = {"x-tgwui-page": "1"}


@pytest.fixture(autouse=True)
def _no_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(login_page, "WRONG_KEY_SECONDS", 0.0)


def keyring(*api_keys: str) -> Keyring:
    return Keyring(PageSettings(api_url="", listener=0, heartbeat=0, api_keys=api_keys))


def page(keys: Keyring, root_path: str = "") -> httpx.AsyncClient:
    async def echo(request: Request) -> Response:
        login = request.scope["login"]
        return JSONResponse({"path": request.url.path, "key": login.key if login else None})

    async def public(request: Request) -> Response:
        return JSONResponse({})

    routes = [
        *login_routes(keys, root_path),
        Route("/assets/{name}", public),
        Route("/{path:path}", echo, methods=["GET", "POST"]),
    ]
    gate = Gate(Starlette(routes=routes), keys, root_path, "pod-a")
    transport = httpx.ASGITransport(gate)
    return httpx.AsyncClient(transport=transport, base_url="http://page")


@pytest.fixture(name="guarded")
def _guarded() -> httpx.AsyncClient:
    return page(keyring(KEY))


def session(client: httpx.AsyncClient, key: str = KEY) -> None:
    client.cookies.set(COOKIE, keyring(KEY).cookie(Login(key, "user")))


@pytest.mark.parametrize(
    "path",
    [
        *("/gradio_api/upload", "/gradio_api/queue/join", "/config", "/file=/etc/passwd"),
        *("/proxy=http", "/login/", "/login_check", "/logout/"),
    ],
)
async def test_what_gradio_brings_and_nobody_needs_does_not_exist(path: str) -> None:
    """Uploads, files, proxies, the queue: not even where the page is open to everybody."""
    answer = await page(keyring()).get(path)

    assert answer.status_code == 404


async def test_an_open_page_needs_no_login() -> None:
    """As the API without keys."""
    answer = await page(keyring()).get("/")

    assert answer.json() == {"path": "/", "key": None}


async def test_a_guarded_page_asks_for_the_key(guarded: httpx.AsyncClient) -> None:
    """A person is sent to the login, a script gets a 401, public files are public."""
    root = await guarded.get("/")
    data = await guarded.get("/page/api/v1/models")

    assert (root.status_code, root.headers["location"]) == (303, "/login")
    assert (data.status_code, data.json()["error"]["code"]) == (401, "session_ended")
    assert (await guarded.get("/assets/a.js")).status_code == 200
    assert (await guarded.get("/login")).status_code == 200


async def test_a_session_brings_its_key(guarded: httpx.AsyncClient) -> None:
    """The key never leaves the server: the cookie stands for it."""
    session(guarded)

    assert (await guarded.get("/page/api/x")).json() == {"path": "/page/api/x", "key": KEY}
    session(guarded, "sk-other")
    assert (await guarded.get("/page/api/x")).status_code == 401
    guarded.cookies.clear()
    headers = {"cookie": '"; \x01=broken'}
    assert (await guarded.get("/page/api/x", headers=headers)).status_code == 401


@pytest.mark.parametrize("path", ["/webui/page/api/x", "/page/api/x"])
async def test_a_prefix_may_be_stripped_or_not(path: str) -> None:
    """Proxies do either."""
    client = page(keyring(), "/webui")

    assert (await client.get(path)).json()["path"] == "/page/api/x"
    assert (await client.get("/webui")).json()["path"] == "/"
    assert (await client.get("/webuix")).status_code == 404


async def test_other_sites_cannot_ask(guarded: httpx.AsyncClient) -> None:
    """What changes something needs a header that only our script sends."""
    session(guarded)

    assert (await guarded.post("/page/api/x")).status_code == 403
    assert (await guarded.post("/page/api/x", headers=OURS)).status_code == 200
    assert (await guarded.post("/logout")).status_code == 403


async def test_every_answer_keeps_the_browser_at_home(guarded: httpx.AsyncClient) -> None:
    """No other host may be asked, no other site may frame the page."""
    headers = (await guarded.get("/login")).headers

    assert "default-src 'self'" in headers["content-security-policy"]
    assert "frame-ancestors 'none'" in headers["content-security-policy"]
    assert headers["x-tgwui-pod"] == "pod-a"


async def test_login_and_logout(guarded: httpx.AsyncClient) -> None:
    """The right key gets a cookie that scripts cannot read; logging out takes it away."""
    wrong = await guarded.post("/login", data={"key": "sk-wrong"})
    assert wrong.status_code == 401
    assert "This key is not known here." in wrong.text
    assert "set-cookie" not in wrong.headers

    right = await guarded.post("/login", data={"key": f" {KEY}\n"})
    assert (right.status_code, right.headers["location"]) == (303, "/")
    for part in ("HttpOnly", "SameSite=lax", "Path=/"):
        assert part in right.headers["set-cookie"]
    assert "Secure" not in right.headers["set-cookie"]
    assert KEY not in right.headers["set-cookie"]
    assert (await guarded.get("/page/api/x")).json()["key"] == KEY

    out = await guarded.post("/logout", headers=OURS)
    assert (out.status_code, 'tgwui_session=""' in out.headers["set-cookie"]) == (204, True)
    assert (await guarded.get("/page/api/x")).status_code == 401


@pytest.mark.parametrize("scheme", ["https", "https, http"])
async def test_https_keeps_the_cookie(guarded: httpx.AsyncClient, scheme: str) -> None:
    """A proxy that ends TLS says so, and the proxies behind it say what they saw."""
    headers = {"x-forwarded-proto": scheme}
    answer = await guarded.post("/login", data={"key": KEY}, headers=headers)

    assert "Secure" in answer.headers["set-cookie"]


async def test_a_login_from_another_site_or_of_a_megabyte(guarded: httpx.AsyncClient) -> None:
    """Neither is a person at the form."""
    elsewhere = {"origin": "http://evil.example"}

    assert (await guarded.post("/login", data={"key": KEY}, headers=elsewhere)).status_code == 403
    here = {"origin": "http://page"}
    assert (await guarded.post("/login", data={"key": KEY}, headers=here)).status_code == 303
    assert (await guarded.post("/login", data={"key": "k" * 1_000_000})).status_code == 401


@pytest.mark.parametrize(
    ("origin", "forwarded", "status"),
    [
        ("https://llm.example:8443", "llm.example", 303),  # Kong leaves the port out
        ("https://llm.example", "llm.example, kong.internal", 303),
        ("https://evil.example", "llm.example", 403),
        ("null", "", 403),
        ("http://[broken", "[broken", 403),
    ],
)
async def test_a_login_behind_proxies(
    guarded: httpx.AsyncClient, origin: str, forwarded: str, status: int
) -> None:
    """The form's own host is the one that the browser knows, whatever the port."""
    headers = {"origin": origin, "x-forwarded-host": forwarded}
    answer = await guarded.post("/login", data={"key": KEY}, headers=headers)

    assert answer.status_code == status


async def test_who_leaves_in_the_middle_of_a_form_raises_nothing() -> None:
    """A closed laptop is not worth a traceback in the log."""
    keys = keyring(KEY)
    gate = Gate(Starlette(routes=login_routes(keys, "")), keys, "", "pod-a")
    messages = iter([{"type": "http.request", "body": b"ke", "more_body": True}])

    async def receive() -> dict[str, object]:
        return next(messages, {"type": "http.disconnect"})

    async def send(message: object) -> None:
        pass

    scope = {"type": "http", "method": "POST", "path": "/login", "headers": []}
    await gate(scope, receive, send)


@pytest.mark.parametrize(
    ("accepted", "language", "label"),
    [("zh-CN,zh;q=0.9", "zh", "密钥"), ("fr, en;q=0.5", "en", "Key"), ("", "en", "Key")],
)
async def test_the_login_speaks_the_browsers_language(
    guarded: httpx.AsyncClient, accepted: str, language: str, label: str
) -> None:
    """English where it speaks neither."""
    text = (await guarded.get("/login", headers={"accept-language": accepted})).text

    assert f'<html lang="{language}">' in text
    assert f">{label}</label>" in text
