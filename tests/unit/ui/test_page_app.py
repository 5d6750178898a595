"""What Gradio draws, and the process that serves it."""

from __future__ import annotations

import io
import json
import re
import socket
from pathlib import Path
from typing import Any

import httpx
import msgspec
import pytest

from tests.helpers.page_process import page_over
from tgwui_k8s.ui.app import STATIC, create_page
from tgwui_k8s.ui.gate import OPEN, OPEN_FOLDERS, PROTECTED, PROTECTED_FOLDERS
from tgwui_k8s.ui.page_settings import PageSettings, page_settings
from tgwui_k8s.ui.parameters import parameters
from tgwui_k8s.ui.process import main


@pytest.fixture(name="presets", scope="module")
def _presets(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("presets")
    (folder / "Ours.yaml").write_text("temperature: 0.3\n")
    (folder / "Broken.yaml").write_text("- no mapping\n")
    return folder


@pytest.fixture(name="page", scope="module")
def _page(presets: Path) -> httpx.AsyncClient:
    settings = PageSettings(
        api_url="http://127.0.0.1:9",
        listener=0,
        heartbeat=0,
        root_path="/webui",
        preset_dir=str(presets),
    )
    transport = httpx.ASGITransport(create_page(settings))
    return httpx.AsyncClient(transport=transport, base_url="http://pod")


def config_of(page: str) -> dict[str, Any]:
    found = re.search(r"window.gradio_config = (\{.*?\});</script>", page, re.DOTALL)
    assert found is not None
    config: dict[str, Any] = json.loads(found[1])
    return config


async def test_no_event_needs_a_pod_that_remembers(page: httpx.AsyncClient) -> None:
    """Every event is the browser's: none has a Python function, none goes through the queue."""
    config = config_of((await page.get("/webui/")).text)

    assert len(config["dependencies"]) > 50
    assert not any(event["backend_fn"] for event in config["dependencies"])
    assert not any(event["queue"] for event in config["dependencies"])
    assert config["root"] == "http://pod/webui"
    assert config["analytics_enabled"] is False


async def test_every_parameter_has_its_place(page: httpx.AsyncClient) -> None:
    """With its meaning beside it, and the operator's presets in the list."""
    config = config_of((await page.get("/")).text)
    props = {one["props"].get("elem_id"): one["props"] for one in config["components"]}

    for one in parameters():
        assert props[f"tgwui-parameter-{one.name}"]["info"]
    assert ["Ours", "Ours"] in props["tgwui-preset"]["choices"]


def test_a_large_head_is_refused_before_the_login() -> None:
    """Whoever can reach the page's port can send one."""
    with page_over("http://127.0.0.1:9") as url:
        address = ("127.0.0.1", int(url.rpartition(":")[2]))
        with socket.create_connection(address, timeout=60) as client:
            client.sendall(b"GET / HTTP/1.1\r\n" + b"x-a: b\r\n" * 9_000)
            assert client.recv(100).startswith(b"HTTP/1.1 431")


def test_no_path_of_the_page_is_below_the_apis_prefix() -> None:
    """Kong takes `/api` for the API and strips it: the page would never see such a request."""
    paths = [*OPEN, *OPEN_FOLDERS, *PROTECTED, *PROTECTED_FOLDERS]
    scripts = [script.read_text() for script in STATIC.glob("*.*")]

    assert [path for path in paths if path.startswith("/api")] == []
    assert re.findall(r"""["'`}]/api\b.*""", "\n".join(scripts)) == []


async def test_presets_by_name(page: httpx.AsyncClient) -> None:
    """Read when they are asked for; what cannot be read is said."""
    assert (await page.get("/page/preset?name=Ours")).json() == {"temperature": 0.3}
    for name in ("Broken", "../Ours", "nothing"):
        answer = await page.get("/page/preset", params={"name": name})
        assert (answer.status_code, "error" in answer.json()) == (400, True)


async def test_the_session_tells_what_the_script_must_know(page: httpx.AsyncClient) -> None:
    """And no key."""
    told = (await page.get("/page/session")).json()

    assert set(told) == {"role", "has_login", "has_admin", "pod", "version"}
    assert (told["role"], told["has_login"]) == ("user", False)


async def test_the_script_is_there(page: httpx.AsyncClient) -> None:
    """Below the prefix too."""
    answer = await page.get("/webui/page/static/main.js")

    assert answer.status_code == 200
    assert "javascript" in answer.headers["content-type"]
    assert answer.headers["cache-control"] == "no-cache"


def test_a_page_without_a_server_ends() -> None:
    """Whoever started it died before telling what to serve."""
    assert main(io.BytesIO(b"{")) == 0


def test_the_process_serves_until_its_stdin_ends() -> None:
    """`page_over` checks its end, which is orderly."""
    with page_over("http://127.0.0.1:9", api_keys=("sk-1",)) as url:
        assert httpx.get(f"{url}/", follow_redirects=True).url.path == "/login"
        assert httpx.post(f"{url}/login", data={"key": "sk-1"}).status_code == 303


def test_settings_reach_the_process_whole() -> None:
    """What one side writes the other reads."""
    from tgwui_k8s.config import ServerSettings, Settings, WebuiSettings

    settings = Settings(
        server=ServerSettings(api_key=("a",), admin_key_file="f", preset_dir="p", root_path="/y"),
        webui=WebuiSettings(webui_root_path="/x", webui_api_url="https://llm"),
    )
    told = page_settings(settings, api_url="http://api", listener=3, heartbeat=4)

    assert msgspec.json.decode(msgspec.json.encode(told), type=PageSettings) == told
    assert (told.listener, told.heartbeat) == (3, 4)
    assert (told.api_keys, told.admin_key_file) == (("a",), "f")
    assert (told.preset_dir, told.root_path) == ("p", "/x")
    assert (told.public_api_url, told.api_root_path) == ("https://llm", "/y")
