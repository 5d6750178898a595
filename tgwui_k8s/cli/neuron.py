"""`tgwui-k8s neuron`: plan a model for AWS Neuron, compile it, and check what was compiled."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from dataclasses import replace
from typing import TYPE_CHECKING

import rich_click as click

from tgwui_k8s.byte_size import format_byte_size
from tgwui_k8s.cli.options import show_warnings, with_settings
from tgwui_k8s.cli.tables import print_table
from tgwui_k8s.config import Settings
from tgwui_k8s.contract import LoadProgress, LoadRequest
from tgwui_k8s.errors import LoaderUnavailableError, StartupError
from tgwui_k8s.neuron.artifacts import ArtifactCompiler
from tgwui_k8s.neuron.examine import Examination, examine
from tgwui_k8s.neuron.instances import INSTANCES, find_instance
from tgwui_k8s.neuron.layout import find_layout
from tgwui_k8s.neuron.options import AMP_NAMES
from tgwui_k8s.neuron.parameters import check_cores
from tgwui_k8s.neuron.plan import Plan, host_warning
from tgwui_k8s.neuron.plan_table import COLUMNS, plan_rows
from tgwui_k8s.neuron.shape import KNOWN_SHAPES, ModelShape
from tgwui_k8s.settings import Provenance
from tgwui_k8s.storage.loader_names import NEURON
from tgwui_k8s.storage.model_dir import resolve_model
from tgwui_k8s.storage.model_files import read_json

if TYPE_CHECKING:
    from collections.abc import Callable


@click.group()
def neuron() -> None:
    """Prepare models for AWS Inferentia2 and Trainium.

    \b
    Examples:
      tgwui-k8s neuron plan Llama-3-8B --instance inf2.24xlarge
      tgwui-k8s neuron compile Llama-3-8B-neuron --tp-degree 8 --batch-size 8 --n-positions 4096
      tgwui-k8s neuron check Llama-3-8B-neuron
    """


@neuron.command()
@click.argument("model")
@click.option(
    "--cpu-only", is_flag=True, help="Compile without a Neuron device; needs its software only."
)
@with_settings("model_dir", "loader_option", "dtype", "max_model_len", "neuron")
def compile(settings: Settings, provenance: Provenance, model: str, cpu_only: bool) -> None:
    """Compile MODEL for NeuronCores and write the artifacts beside it.

    The graphs appear as a whole when the last one is done; until then a folder that is already
    there stays as it is. Run it in the image that will serve, at the same path.
    """
    show_warnings(provenance)
    request = _request(settings, model)
    examination = examine(request, os.environ)
    for line in _estimate(examination):
        click.echo(line)
    # Kubernetes ends a Job by a signal: clean up as after Ctrl-C.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    folder = _compiler().compile(request, _report(), cpu_only=cpu_only)
    click.secho(f"The artifacts are in {folder}.", fg="green")


@neuron.command()
@click.argument("model")
@with_settings("model_dir", "loader_option", "dtype", "max_model_len", "neuron")
def check(settings: Settings, provenance: Provenance, model: str) -> None:
    """Say whether the artifacts of MODEL fit this host; exit code 3 where they do not.

    Reads metadata, config.json and the manifest: no weights, no device, no Neuron software.
    """
    show_warnings(provenance)
    examination = examine(_request(settings, model), os.environ)
    for line in _estimate(examination):
        click.echo(line)
    check_cores(examination.parameters, examination.host)
    if examination.unusable is not None:
        raise StartupError(examination.unusable)
    click.secho(f"The artifacts in {examination.folder.artifacts} fit.", fg="green")


@neuron.command()
@click.argument("model")
@click.option(
    "--instance",
    "instances",
    multiple=True,
    metavar="TYPE",
    help="Such as inf2.24xlarge; may be repeated. Default: every one.",
)
@click.option("--s8", is_flag=True, help="With the layers' weights in eight bits.")
@with_settings("model_dir", "amp")
def plan(
    settings: Settings,
    provenance: Provenance,
    model: str,
    instances: tuple[str, ...],
    s8: bool,
) -> None:
    """Show how MODEL would lie on a machine: degrees, heads, memory, batch and context.

    MODEL is a folder, or one of the published shapes: Llama-2-7B, Llama-2-13B, Llama-2-70B,
    Llama-3-8B, Llama-3-70B. Needs no Neuron software and no weights.
    """
    show_warnings(provenance)
    shape = _shape(settings, model)
    amp = AMP_NAMES.get((settings.neuron.amp or "bf16").lower())
    if amp is None:
        raise click.BadParameter(f"not one of {', '.join(AMP_NAMES)}", param_hint="--amp")
    machines = [find_instance(name) for name in instances] or list(INSTANCES)
    print_table(COLUMNS, plan_rows(shape, machines, amp, quantized=s8))
    for machine in machines:
        warning = host_warning(shape, amp, machine)
        if warning is not None:
            click.secho(f"Warning: {warning}", fg="yellow", err=True)


def _request(settings: Settings, model: str) -> LoadRequest:
    # Imported here because the whole command line should not wait for the engine's messages.
    from tgwui_k8s.load_request import load_request

    return load_request(
        replace(settings, model=replace(settings.model, model=model, loader=NEURON))
    )


def _compiler() -> ArtifactCompiler:
    from tgwui_k8s.registry import get_loader

    loader = get_loader(NEURON)
    if not isinstance(loader, ArtifactCompiler):
        raise LoaderUnavailableError(f"the loader '{NEURON}' that is installed compiles nothing")
    return loader


def _shape(settings: Settings, model: str) -> ModelShape:
    known = {name.lower(): shape for name, shape in KNOWN_SHAPES.items()}
    if model.lower() in known:
        return known[model.lower()]
    folder = find_layout(resolve_model(model, settings.model.model_dir))
    return ModelShape.from_config(read_json(folder.model / "config.json"))


def _estimate(examination: Examination) -> Iterator[str]:
    parameters, plan = examination.parameters, examination.plan
    used = plan.used_bytes(parameters.batch_size, parameters.n_positions)
    buckets = ", ".join(map(str, parameters.context_buckets))
    yield (
        f"{parameters.library}, {parameters.mode}: tp_degree {parameters.tp_degree}, "
        f"batch_size {parameters.batch_size}, n_positions {parameters.n_positions}, "
        f"{parameters.amp}, prompts of {buckets}"
    )
    yield (
        f"memory: about {format_byte_size(used)} of each core's "
        f"{format_byte_size(plan.core_bytes)}; {_num_graphs(plan, examination)}"
    )


def _num_graphs(plan: Plan, examination: Examination) -> str:
    num_graphs = 1 + len(examination.parameters.context_buckets)
    return f"{num_graphs} graphs of {plan.shape.layers} layers each"


def _report() -> Callable[[LoadProgress], None]:
    phases: list[str] = []

    def report(progress: LoadProgress) -> None:
        if progress.phase not in phases:
            phases.append(progress.phase)
            click.echo(f"{progress.phase.replace('_', ' ')} ...")

    return report
