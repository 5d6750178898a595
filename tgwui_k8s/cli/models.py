"""`tgwui-k8s models`: what lies in the model directory, and `models pull`: put a model there."""

from __future__ import annotations

import dataclasses
import json

import rich_click as click

from tgwui_k8s.byte_size import format_byte_size
from tgwui_k8s.cli.models_pull import pull
from tgwui_k8s.cli.options import show_warnings, with_settings
from tgwui_k8s.cli.tables import print_table
from tgwui_k8s.config import Settings
from tgwui_k8s.contract import LoadRequest
from tgwui_k8s.errors import ModelNotFoundError
from tgwui_k8s.settings import Provenance
from tgwui_k8s.storage.describe import ModelDescription, describe_model, describe_models
from tgwui_k8s.storage.model_dir import DEMO, resolve_model

_COLUMNS = ("name", "loader", "size", "quantization", "context", "architecture", "why")


@click.group(invoke_without_command=True)
@click.option("--json", "as_json", is_flag=True, help="As a JSON list.")
@with_settings("model_dir")
@click.pass_context
def models(ctx: click.Context, settings: Settings, provenance: Provenance, as_json: bool) -> None:
    """List the models in the model directory, and the loader that each would get.

    Names, sizes, config.json and GGUF headers are read; weights are not. A folder that holds no
    usable model is listed with the reason.

    \b
    Examples:
      tgwui-k8s models --model-dir /models
      tgwui-k8s models --json | jq '.[] | select(.loader == "llama.cpp") | .name'
      tgwui-k8s models pull hf://TheBloke/Llama-2-7B-Chat-AWQ --model-dir /models
    """
    if ctx.invoked_subcommand is not None:
        return
    show_warnings(provenance)
    model_dir = settings.model.model_dir
    try:
        found = describe_models(model_dir)
    except ModelNotFoundError:
        if provenance.sources["model_dir"] != "default":
            raise
        click.secho(f"There is no directory {model_dir}/ here.", fg="yellow", err=True)
        found = [describe_model(resolve_model(DEMO, model_dir), DEMO)]
    found = [_with_likely_loader(model) for model in found]
    if as_json:
        click.echo(json.dumps([dataclasses.asdict(model) for model in found], indent=2))
    else:
        print_table(_COLUMNS, map(_row, found))


def _with_likely_loader(model: ModelDescription) -> ModelDescription:
    """What was inferred from the files, or the faster loader that this machine would take."""
    # Imported here because a server that starts has no use for package metadata.
    from tgwui_k8s.registry import likely_loader

    if model.loader is None:
        return model
    request = LoadRequest(model_path=model.path, loader=model.loader, loader_is_inferred=True)
    loader = likely_loader(request)
    if loader == model.loader:
        return model
    reason = f"{model.reason}; {loader} runs it faster than {model.loader}"
    return dataclasses.replace(model, loader=loader, reason=reason)


def _row(model: ModelDescription) -> tuple[str, ...]:
    return (
        model.name,
        model.loader or "-",
        format_byte_size(model.size_bytes),
        model.quantization or model.dtype or "-",
        str(model.context_length or "-"),
        model.architecture or "-",
        model.error or model.reason,
    )


models.add_command(pull)
