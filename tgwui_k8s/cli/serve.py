"""`tgwui-k8s serve`: the server, until a signal."""

from __future__ import annotations

import os

import rich_click as click

from tgwui_k8s.cli.fetched_model import with_fetched_model
from tgwui_k8s.cli.options import with_settings
from tgwui_k8s.config import Settings
from tgwui_k8s.server import run_server
from tgwui_k8s.settings import Provenance


@click.command()
@with_settings("model", "engine", "neuron", "llama_cpp", "server", "webui", "observability")
@click.pass_context
def serve(ctx: click.Context, settings: Settings, provenance: Provenance) -> None:
    """Serve a model over HTTP.

    \b
    Examples:
      tgwui-k8s serve
      tgwui-k8s serve --model-dir /models --model Llama-3.1-8B-Instruct --listen
      TGWUI_MAX_NUM_SEQS=16 tgwui-k8s serve --kv-cache-memory 4GiB
      tgwui-k8s serve --config settings.yaml --api-key-file /run/secrets/api-keys

    The port opens at once; /health/ready answers 200 when the model is loaded and warm. SIGTERM
    lets running requests finish. Exit codes: 0 stopped by a signal, 2 wrong settings, 3 could not
    load the model or bind the port.
    """
    settings = with_fetched_model(settings, os.environ)
    ctx.exit(run_server(settings, provenance.warnings))
