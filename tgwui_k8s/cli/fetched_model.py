"""A model that SageMaker's HF_MODEL_ID names by its place on the net, fetched to be served."""

from __future__ import annotations

import logging
import tempfile
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from tgwui_k8s.config import Settings
from tgwui_k8s.errors import ModelNotFoundError
from tgwui_k8s.observability.log import event, setup_logging
from tgwui_k8s.storage.model_dir import resolve_model

_VARIABLES = ("HF_MODEL_ID", "OPTION_MODEL_ID")

logger = logging.getLogger(__name__)


def with_fetched_model(settings: Settings, environ: Mapping[str, str]) -> Settings:
    """The settings with the path of the fetched model; unchanged where none is to be fetched.

    Only SageMaker's own variables ask for it: elsewhere models are put into the model directory by
    `tgwui-k8s models pull`, and serving reads them. Raises `DownloadError`, `UsageError`.
    """
    name = settings.model.model
    if name not in (environ.get(variable, "").strip() for variable in _VARIABLES):
        return settings
    # Imported here because only this case wants it.
    from tgwui_k8s.storage.pull.pull import PullRequest, pull
    from tgwui_k8s.storage.pull.sources import is_remote, parse_source

    if not is_remote(name) or _is_local(settings):
        return settings
    setup_logging(settings.observability)
    revision = environ.get("OPTION_REVISION", "").strip()
    source = parse_source(f"{name}@{revision}" if revision else name)
    request = PullRequest(model_dir=Path(tempfile.gettempdir()) / "models")
    pulled = pull(source, request, lambda done, total: None)
    logger.info("fetched", extra=event(folder=str(pulled.folder), bytes_total=pulled.num_bytes))
    served = settings.model.served_model_name or (name, pulled.folder.name)
    model = replace(settings.model, model=str(pulled.folder), served_model_name=served)
    return replace(settings, model=model)


def _is_local(settings: Settings) -> bool:
    try:
        resolve_model(settings.model.model, settings.model.model_dir)
    except ModelNotFoundError:
        return False
    return True
