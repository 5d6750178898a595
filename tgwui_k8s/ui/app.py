"""`create_page`: the page's routes around what Gradio draws."""

from __future__ import annotations

import inspect
import os
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import gradio as gr
import msgspec
from fastapi import FastAPI
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route
from starlette.staticfiles import StaticFiles
from starlette.types import ASGIApp

from tgwui_k8s import __version__
from tgwui_k8s.errors import InternalError, InvalidRequestError
from tgwui_k8s.presets import load_preset, preset_names
from tgwui_k8s.ui.blocks import create_blocks, translations
from tgwui_k8s.ui.engine_state import EngineState
from tgwui_k8s.ui.gate import Gate
from tgwui_k8s.ui.keys import Keyring
from tgwui_k8s.ui.login import login_routes
from tgwui_k8s.ui.model_load import ModelLoad
from tgwui_k8s.ui.page_settings import PageSettings
from tgwui_k8s.ui.parameters import parameters
from tgwui_k8s.ui.proxy import Proxy, api_client
from tgwui_k8s.ui.words import LANGUAGES, words

STATIC = Path(__file__).parent / "static"

_HEAD = """
<meta name="viewport" content="width=device-width, initial-scale=1">
<script>
window.tgwuiPage = %s;
window.tgwuiLoaded = import(window.tgwuiPage.root + "/page/static/main.js");
window.tgwui = async (name, values) => (await window.tgwuiLoaded).call(name, values);
window.tgwuiBridge = (trigger) => window.tgwuiLoaded.then((page) => page.bridge(trigger));
</script>
"""


def create_page(settings: PageSettings) -> ASGIApp:
    """The whole page. Raises `UsageError` for key files without keys."""
    keyring = Keyring(settings)
    client = api_client(settings.api_url)
    pod = os.environ.get("HOSTNAME") or socket.gethostname()
    presets = None if settings.preset_dir is None else Path(settings.preset_dir)

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        async with client:
            yield

    async def session(request: Request) -> Response:
        """What the script must know of whoever asks, and of this pod."""
        login = request.scope["login"]
        told = {
            "role": login.role,
            "has_login": login.key is not None,
            "has_admin": keyring.has_admin,
            "pod": pod,
            "version": __version__,
        }
        return JSONResponse(told, headers={"cache-control": "no-store"})

    async def preset(request: Request) -> Response:
        """The values of a preset, by field name."""
        try:
            values = load_preset(request.query_params.get("name", ""), presets)
        except (InvalidRequestError, InternalError) as error:
            told = {"error": {"message": str(error), "code": "invalid_preset"}}
            return JSONResponse(told, status_code=400)
        return JSONResponse(values)

    app = FastAPI(openapi_url=None, docs_url=None, redoc_url=None, lifespan=lifespan)
    app.router.routes.extend(
        (
            *login_routes(keyring, settings.root_path),
            Route("/page/session", session),
            Route("/page/preset", preset),
            Route("/page/engine", EngineState(client, pod).__call__),
            Route("/page/load", ModelLoad(client).__call__, methods=["POST"]),
            Route("/page/api/{path:path}", Proxy(client).__call__, methods=["GET", "POST"]),
        )
    )
    app.mount("/page/static", StaticFiles(directory=STATIC))
    _draw(app, settings, preset_names(presets))
    return Gate(app, keyring, settings.root_path, pod)


def _without_run_history() -> dict[str, bool]:
    """The newest Gradio for the Neuron image's other libraries (6.17) does not have it yet."""
    known = inspect.signature(gr.mount_gradio_app).parameters
    return {"run_history": False} if "run_history" in known else {}


def _draw(app: FastAPI, settings: PageSettings, names: list[str]) -> None:
    """Mount what Gradio draws at `/`."""
    i18n = gr.I18n(**translations())
    told = {
        "root": settings.root_path,
        "api": {
            "url": settings.public_api_url,
            "port": settings.api_url.rpartition(":")[2],
            "root": settings.api_root_path,
        },
        "words": {language: words(language) for language in LANGUAGES},
        "parameters": msgspec.to_builtins(parameters()),
    }
    gr.mount_gradio_app(
        app,
        create_blocks(i18n, names),
        path="/",
        root_path=settings.root_path or None,
        footer_links=[],
        show_error=False,
        ssr_mode=False,
        enable_monitoring=False,
        pwa=False,
        mcp_server=False,
        i18n=i18n,
        theme=_theme(),
        css=(STATIC / "page.css").read_text(encoding="utf-8"),
        **_without_run_history(),
        head=_HEAD % _script_json(told),
    )


def _script_json(value: Any) -> str:
    """JSON that cannot end the script element it stands in."""
    return msgspec.json.encode(value).decode().replace("<", "\\u003c")


def _theme() -> gr.themes.Base:
    """Gradio's default with the fonts of the reader's own machine: nothing is fetched."""
    return gr.themes.Default(
        primary_hue="indigo",
        secondary_hue="indigo",
        neutral_hue="zinc",
        radius_size="md",
        font=["system-ui", "sans-serif"],
        font_mono=["ui-monospace", "monospace"],
    ).set(body_text_color_subdued="*neutral_500", block_info_text_color="*neutral_500")
