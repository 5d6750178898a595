"""The generation routes over a fake backend, served by a real uvicorn on a free port."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import httpx
import openai
import uvicorn
from fastapi import FastAPI

from tests.helpers.fake_backend import FakeBackend
from tgwui_k8s.api import chat, completions, embeddings, invocations, messages, models, responses
from tgwui_k8s.api.chat_template import DEFAULT, ChatTemplate
from tgwui_k8s.api.errors import HANDLED, handle_error
from tgwui_k8s.api.middleware import BodyLimit, RequestMiddleware
from tgwui_k8s.api.state import ServedModel, ServerState
from tgwui_k8s.api.tokenizer import Tokenizer
from tgwui_k8s.config import EngineSection, ObservabilitySettings, ServerSettings, Settings
from tgwui_k8s.contract import LoadProgress
from tgwui_k8s.demo.tiny_tokenizer import CHAT_TEMPLATE, write_tokenizer
from tgwui_k8s.observability.metrics import Metrics

MODEL = "fake/model"
SAID = "Mix the flour with the sugar, then bake: größer 你好!"
"""What `FakeBackend`s of `make_backend` say, over and over."""


@cache
def tiny_tokenizer() -> Tokenizer:
    """The tokenizer of 512 tokens."""
    with TemporaryDirectory() as folder:
        write_tokenizer(Path(folder))
        return Tokenizer.load(Path(folder))


def encode(text: str) -> list[int]:
    """Token ids of `text` alone."""
    return tiny_tokenizer().encode(text, add_special_tokens=False)


def said(num_tokens: int) -> str:
    """The text of `num_tokens` of `SAID` over and over."""
    return tiny_tokenizer().decode((encode(SAID) * 30)[:num_tokens])


def make_backend(text: str = SAID, **options: Any) -> FakeBackend:
    """A backend that repeats one text."""
    token_ids = encode(text)
    return FakeBackend(lambda request, index: token_ids * 30, **options)


def make_state(
    backend: FakeBackend,
    *,
    template: str | None = CHAT_TEMPLATE,
    engine: EngineSection = EngineSection(),  # noqa: B008 - frozen
    log_prompts: bool = False,
    **server: Any,
) -> ServerState:
    """A state with `backend`'s model loaded."""
    observability = ObservabilitySettings(log_prompts=log_prompts)
    settings = Settings(server=ServerSettings(**server), engine=engine, observability=observability)
    tokenizer = tiny_tokenizer()
    chat_template = (
        None if template is None else ChatTemplate({DEFAULT: template}, tokenizer.special_tokens)
    )
    model = ServedModel(backend.info, (MODEL, "alias"), tokenizer, chat_template)
    return ServerState(
        settings=settings,
        backend=backend,
        metrics=Metrics(settings.observability, MODEL),
        model=model,
        load_progress=LoadProgress("ready"),
    )


def make_app(state: ServerState) -> FastAPI:
    """The generation routes with the middleware and error handlers they live with."""
    app = FastAPI()
    for module in (completions, chat, messages, models, responses, embeddings, invocations):
        app.include_router(module.create_router(state))
    for error_class in HANDLED:
        app.add_exception_handler(error_class, handle_error)
    app.add_middleware(BodyLimit, max_bytes=state.settings.server.max_body_bytes)
    app.add_middleware(RequestMiddleware, state=state)
    return app


@dataclass(frozen=True)
class ApiServer:
    """A server under test."""

    url: str
    state: ServerState
    backend: FakeBackend
    http: httpx.Client

    def client(self) -> openai.OpenAI:
        """The official client, which gives up at once."""
        return openai.OpenAI(
            base_url=f"{self.url}/v1", api_key="none", max_retries=0, http_client=self.http
        )

    def async_client(self) -> openai.AsyncOpenAI:
        """The same for asyncio."""
        return openai.AsyncOpenAI(
            base_url=f"{self.url}/v1", api_key="none", max_retries=0, timeout=20
        )

    def post(self, path: str, body: Any) -> httpx.Response:
        """A plain request."""
        return self.http.post(f"{self.url}{path}", json=body)

    def events(self, path: str, body: Any) -> list[str]:
        """The events of a stream as they stood on the wire."""
        response = self.post(path, body)
        assert response.status_code == 200, response.text
        assert response.text.endswith("\n\n")
        return response.text.split("\n\n")[:-1]


@contextlib.contextmanager
def serving(backend: FakeBackend, **options: Any) -> Iterator[ApiServer]:
    """Serve until the block ends. `options` are `make_state`'s."""
    state = make_state(backend, **options)
    config = uvicorn.Config(make_app(state), port=0, log_config=None, timeout_graceful_shutdown=1)
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    wait_until(lambda: server.started)
    port = server.servers[0].sockets[0].getsockname()[1]
    try:
        with httpx.Client(timeout=20, verify=False) as http:
            yield ApiServer(f"http://127.0.0.1:{port}", state, backend, http)
    finally:
        server.should_exit = True
        thread.join(10)


def wait_until(is_true: Callable[[], object]) -> None:
    """Return when the condition holds; fail when it does not for long."""
    for _ in range(2000):
        if is_true():
            return
        time.sleep(0.005)
    raise AssertionError("It never happened.")
