"""`tgwui-k8s models pull`: fill the model directory, as a Kubernetes Job does."""

from __future__ import annotations

import logging
import os
import signal
import time
from pathlib import Path
from typing import Any

import rich_click as click

from tgwui_k8s.cli.options import with_settings
from tgwui_k8s.config import Settings
from tgwui_k8s.errors import DownloadError
from tgwui_k8s.observability.log import event, setup_logging
from tgwui_k8s.settings import Provenance
from tgwui_k8s.storage.pull.pull import NUM_CONNECTIONS, PullRequest
from tgwui_k8s.storage.pull.pull import pull as pull_model
from tgwui_k8s.storage.pull.sources import parse_source

_REPORT_SECONDS = 10.0
_INTERRUPTED = 130

logger = logging.getLogger(__name__)


@click.command()
@click.argument("source")
@click.option("--name", help="The model's folder; default: made of the source.")
@click.option(
    "--include",
    multiple=True,
    metavar="PATTERN",
    help="Fetch these files and no others, such as '*Q4_K_M.gguf'. Repeatable.",
)
@click.option("--exclude", multiple=True, metavar="PATTERN", help="Do not fetch these. Repeatable.")
@click.option(
    "--connections",
    "num_connections",
    type=click.IntRange(1, 128),
    default=NUM_CONNECTIONS,
    show_default=True,
    help="Parts that are fetched at once.",
)
@with_settings("model_dir", "observability")
@click.pass_context
def pull(
    ctx: click.Context, /, settings: Settings, provenance: Provenance, source: str, **choice: Any
) -> None:
    """Fetch a model from SOURCE into the model directory.

    SOURCE is hf://ORG/NAME, hf://ORG/NAME@REVISION, s3://BUCKET/PREFIX or https://HOST/FILE, with
    '#sha256=...' behind it to have it checked. Interrupted, it goes on where it was. The folder
    appears when it is complete, and one that is there already is never touched. Two of these for
    one model do the work once.

    \b
    Examples:
      tgwui-k8s models pull hf://TheBloke/Llama-2-7B-Chat-AWQ --model-dir /models
      tgwui-k8s models pull bartowski/Llama-3.2-3B-Instruct-GGUF --include '*Q4_K_M.gguf'
      tgwui-k8s models pull s3://my-models/Llama-3.1-8B-Instruct --name llama
    """
    setup_logging(settings.observability)
    for warning in provenance.warnings:
        logger.warning("%s", warning)
    # Kubernetes ends a Job by a signal: leave as after Ctrl-C, with the lock released.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    os.umask(0o002)
    request = PullRequest(model_dir=Path(settings.model.model_dir), **choice)
    started = time.monotonic()
    try:
        pulled = pull_model(parse_source(source), request, _Report())
    except DownloadError as error:
        logger.error("%s", error)
        ctx.exit(3)
    except KeyboardInterrupt:
        logger.warning("interrupted; the next run goes on from here")
        ctx.exit(_INTERRUPTED)
    logger.info(
        "already there" if pulled.was_there else "complete",
        extra=event(
            folder=str(pulled.folder),
            bytes_total=pulled.num_bytes,
            duration_s=round(time.monotonic() - started, 3),
        ),
    )


class _Report:
    """A line every few seconds."""

    def __init__(self) -> None:
        self._last: tuple[float, int] | None = None

    def __call__(self, num_bytes: int, num_bytes_in_all: int) -> None:
        """Called more often than it writes."""
        now = time.monotonic()
        since, before = self._last or (now, num_bytes)
        if self._last is not None and now - since < _REPORT_SECONDS:
            return
        self._last = (now, num_bytes)
        rate = (num_bytes - before) / (now - since) if now > since else 0.0
        logger.info(
            "fetching",
            extra=event(
                bytes_done=num_bytes, bytes_total=num_bytes_in_all, bytes_per_second=round(rate)
            ),
        )
