"""Which model the server serves: at the start, after a change over HTTP, and after a crash.

Brings the engine's side of a model (its process) and the API's side (tokenizer, chat template)
together and writes the result into `ServerState.model`; nobody else does.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from tgwui_k8s.api.state import ServedModel, ServerState
from tgwui_k8s.config import Settings
from tgwui_k8s.contract import LoadProgress, LoadRequest, ModelInfo
from tgwui_k8s.daemon_thread import in_daemon_thread
from tgwui_k8s.engine.client import EngineClient, Phase
from tgwui_k8s.errors import (
    BrokenModelError,
    UnsupportedModelError,
    UnsupportedParameterError,
)
from tgwui_k8s.load_request import engine_settings, load_request, served_names
from tgwui_k8s.observability.log import event
from tgwui_k8s.storage.adapter_dir import find_adapter
from tgwui_k8s.storage.adapter_files import AdapterFiles
from tgwui_k8s.storage.identity import fingerprint
from tgwui_k8s.storage.model_dir import tokenizer_folder

if TYPE_CHECKING:
    from tgwui_k8s.api.chat_template import ChatTemplate
    from tgwui_k8s.api.tokenizer import Tokenizer

logger = logging.getLogger(__name__)


class ModelController:
    """`api.state.ModelControl` over the engine process."""

    def __init__(self, state: ServerState, engine: EngineClient) -> None:
        """Takes over the engine's callbacks."""
        self._state = state
        self._engine = engine
        self._served: ServedModel | None = None
        """The loaded model, while its engine restarts too."""
        self._changing = asyncio.Lock()
        engine.on_phase = self._follow
        engine.on_progress = self._note

    async def start(self) -> None:
        """Load the model that the settings name. Raises a `StartupError`."""
        async with self._changing:
            await self._load(self._state.settings, over_http=False)

    async def load(self, settings: Settings) -> None:
        """Replace the loaded model; see `api.state.ModelControl`."""
        async with self._changing:
            await self._load(settings, over_http=True)

    async def unload(self) -> None:
        """Free the model's memory; requests still running get an error."""
        async with self._changing:
            self._forget("unloaded")
            await self._engine.unload()

    # ---------------------------------------------------------------------------------- adapters

    async def load_adapters(self, names: Sequence[str]) -> None:
        """See `api.state.ModelControl`. The weights are read ahead, so that no step waits long."""
        async with self._changing:
            served = self._require()
            lora_dir = self._state.settings.model.lora_dir
            for name in names:
                if name in served.names:
                    raise UnsupportedModelError(f"'{name[:200]}' is the name of the model itself")
                folder = await in_daemon_thread(partial(find_adapter, name, lora_dir))
                digest = await in_daemon_thread(partial(_read_ahead, folder))
                await self._engine.load_adapter(name, str(folder))
                served = _with_adapter(self._require(), name, digest)
                self._served = self._state.model = served

    async def unload_adapters(self, names: Sequence[str] | None) -> None:
        """See `api.state.ModelControl`."""
        async with self._changing:
            for name in tuple(self._require().adapters) if names is None else names:
                served = self._require()
                others = {key: view for key, view in served.adapters.items() if key != name}
                self._served = self._state.model = replace(served, adapters=others)
                await self._engine.unload_adapter(name)

    def _require(self) -> ServedModel:
        served = self._state.loaded_model()
        if not served.info.capabilities.adapters:
            raise UnsupportedParameterError(
                f"The loader {served.info.loader} runs no LoRA adapters. Start the server with "
                "--lora or --lora-dir, or with --loader Transformers."
            )
        return served

    # ----------------------------------------------------------------------------------- loading

    async def _load(self, settings: Settings, *, over_http: bool) -> None:
        # Finding the model touches the file system, which may be a slow one or hang.
        request = await in_daemon_thread(lambda: load_request(settings, over_http=over_http))
        self._forget("starting")
        started = time.monotonic()
        engine = asyncio.create_task(self._engine.load(request, engine_settings(settings.engine)))
        try:
            served = await self._prepare(settings, request, engine)
        except BaseException:
            engine.cancel()
            await asyncio.gather(engine, return_exceptions=True)
            await self._engine.unload()
            self._forget("unloaded")
            raise
        self._serve(served)
        self._report(served, seconds=time.monotonic() - started)

    async def _prepare(
        self, settings: Settings, request: LoadRequest, engine: asyncio.Task[ModelInfo]
    ) -> ServedModel:
        """Read tokenizer and template, beside the weights where the model's files hold them."""
        folder = tokenizer_folder(request.path)
        tokenizer = await in_daemon_thread(lambda: _own_tokenizer(request))
        info = await engine
        if tokenizer is None:
            tokenizer = await in_daemon_thread(lambda: _tokenizer_of(info, folder))
        special_tokens, override = tokenizer.special_tokens, settings.model.chat_template
        template = await in_daemon_thread(
            lambda: _load_template(folder, special_tokens, override, info.chat_template)
        )
        names = served_names(settings.model, request.path)
        served = ServedModel(info, names, tokenizer, template)
        for name, adapter in (request.adapters or {}).items():
            digest = await in_daemon_thread(partial(_fingerprint, Path(adapter)))
            served = _with_adapter(served, name, digest)
        return served

    # --------------------------------------------------------------------- what the server shows

    def _serve(self, served: ServedModel) -> None:
        self._served = self._state.model = served
        progress = self._state.load_progress
        self._note(LoadProgress("ready", progress.bytes_read, progress.bytes_total))

    def _forget(self, phase: str) -> None:
        self._served = self._state.model = None
        self._state.restarting = False
        self._note(LoadProgress(phase))

    def _follow(self, phase: Phase) -> None:
        """Take the model away while its engine restarts, and give it back after."""
        served, info = self._served, self._engine.info
        if served is None:
            return
        self._state.restarting = phase == "restarting"
        if phase == "restarting":
            self._state.model = None
            self._note(LoadProgress("starting"))
        elif phase == "ready" and info is not None:
            self._serve(replace(served, info=info))
        elif phase == "dead":
            # Requests learn from the engine why it is gone for good.
            self._state.model = served

    def _note(self, progress: LoadProgress) -> None:
        before, self._state.load_progress = self._state.load_progress, progress
        if progress.phase != before.phase:
            logger.info("%s", progress.phase, extra=event(phase=progress.phase))

    def _report(self, served: ServedModel, *, seconds: float) -> None:
        info, metrics = served.info, self._state.metrics
        metrics.set_model(served.names[0])
        metrics.observe_model_load(seconds, self._state.load_progress.bytes_read)
        metrics.observe_model_details(info.details)
        facts = event(
            model=served.names[0],
            loader=info.loader,
            architecture=info.architecture,
            dtype=info.dtype,
            device=info.device,
            max_model_len=info.max_model_len,
            duration_s=round(seconds, 3),
        )
        logger.info("model loaded", extra=facts)


def _with_adapter(served: ServedModel, name: str, digest: str) -> ServedModel:
    """The model with one adapter more, which answers under its own name and fingerprint."""
    info = msgspec.structs.replace(served.info, fingerprint=f"{served.info.fingerprint}_{digest}")
    view = replace(
        served, info=info, names=(name,), adapter=name, adapters={}, created=int(time.time())
    )
    return replace(served, adapters={**served.adapters, name: view})


def _read_ahead(folder: Path) -> str:
    """Check an adapter and bring its weights into the page cache; its fingerprint."""
    for file in AdapterFiles.read(folder).weights.files:
        file.read_bytes()
    return _fingerprint(folder)


def _fingerprint(folder: Path) -> str:
    files = AdapterFiles.read(folder)
    return fingerprint(files.weights.files, dict(files.config), ())


# Their libraries are imported here: the engine is on its way by then.


def _own_tokenizer(request: LoadRequest) -> Tokenizer | None:
    from tgwui_k8s.api.tokenizer import Tokenizer

    return Tokenizer.of_model(request.path, request.loader)


def _tokenizer_of(info: ModelInfo, folder: Path) -> Tokenizer:
    """The one that the loader has made."""
    from tgwui_k8s.api.tokenizer import Tokenizer

    return Tokenizer.load(folder, tokenizer_json=info.tokenizer_json)


def _load_template(
    folder: Path, special_tokens: dict[str, str], override: str | None, built_in: str | None
) -> ChatTemplate | None:
    """The operator's template, else the one that came with the weights, else the folder's."""
    from tgwui_k8s.api.chat_template import DEFAULT, ChatTemplate

    if override is None and built_in is not None:
        try:
            return ChatTemplate({DEFAULT: built_in}, special_tokens)
        except Exception as error:
            raise BrokenModelError(
                f"the model's chat template does not compile: {error}"
            ) from error
    return ChatTemplate.load(folder, special_tokens, None if override is None else Path(override))
