"""All that can be known of a model for Neuron before weights are read or a device is touched."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tgwui_k8s.byte_size import format_byte_size
from tgwui_k8s.contract import LoadRequest
from tgwui_k8s.errors import NotEnoughMemoryError, UnsupportedModelError
from tgwui_k8s.neuron.artifacts import why_unusable
from tgwui_k8s.neuron.instances import allowed_tp_degrees
from tgwui_k8s.neuron.layout import (
    OPTIMUM_NEURON,
    TRANSFORMERS_NEURONX,
    NeuronFolder,
    find_layout,
)
from tgwui_k8s.neuron.manifest import read_manifest
from tgwui_k8s.neuron.optimum_export import Export, read_export, why_export_unusable
from tgwui_k8s.neuron.options import NeuronOptions, parse_options
from tgwui_k8s.neuron.parameters import Parameters, decide
from tgwui_k8s.neuron.plan import Plan, check_memory
from tgwui_k8s.neuron.rope_config import check_rope
from tgwui_k8s.neuron.shape import ModelShape
from tgwui_k8s.neuron.visible_cores import Host, find_host
from tgwui_k8s.storage.model_files import read_json

_ROOT = Path("/")


@dataclass(frozen=True)
class Examination:
    """What was found and decided."""

    options: NeuronOptions
    folder: NeuronFolder
    config: dict[str, Any]
    host: Host
    parameters: Parameters
    plan: Plan
    export: Export | None
    """optimum-neuron's, where it is to run the model."""
    unusable: str | None
    """Why the artifacts on disk cannot be used; None where they can."""

    @property
    def model_type(self) -> str:
        """Hugging Face's word for the architecture."""
        return str(self.config["model_type"])


def examine(request: LoadRequest, environ: Mapping[str, str], root: Path = _ROOT) -> Examination:
    """Read the small files and the environment, and decide and check all parameters.

    Whether the machine has the cores is not checked: a compiler needs none. Raises a
    `StartupError` that names the parameter and what would fit.
    """
    options = parse_options(request.options)
    if request.device != "auto":
        raise UnsupportedModelError(
            f"device={request.device}: the Neuron loader runs on NeuronCores; leave it at auto"
        )
    folder = find_layout(request.path, options.artifacts)
    config = read_json(folder.model / "config.json")
    host = find_host(environ, root)
    manifest = export = None
    if _is_export(options, folder):
        export = read_export(folder.path)
        parameters = export.parameters
    else:
        check_rope(config)
        manifest = read_manifest(folder.artifacts)
        parameters = decide(
            options,
            request,
            config,
            library=TRANSFORMERS_NEURONX,
            host=host,
            compiled=manifest.parameters if manifest else None,
        )
    plan = Plan(
        shape=ModelShape.from_config(config),
        tp_degree=parameters.tp_degree,
        amp=parameters.amp,
        quantized=parameters.quantization != "none",
    )
    check_memory(
        plan,
        batch_size=parameters.batch_size,
        n_positions=parameters.n_positions,
        tp_degrees=allowed_tp_degrees(host.family),
    )
    _check_cache_limit(request, parameters, plan)
    if export is None:
        unusable = why_unusable(manifest, parameters, config, folder)
    else:
        unusable = why_export_unusable(export, options, folder)
    return Examination(options, folder, config, host, parameters, plan, export, unusable)


def _is_export(options: NeuronOptions, folder: NeuronFolder) -> bool:
    if options.library in (None, "auto"):
        return folder.library == OPTIMUM_NEURON
    return options.library == OPTIMUM_NEURON


def _check_cache_limit(request: LoadRequest, parameters: Parameters, plan: Plan) -> None:
    """The cache is as large as was compiled; a limit can only be kept or not."""
    positions = parameters.batch_size * parameters.n_positions
    needed = positions * plan.position_bytes * parameters.tp_degree
    if request.kv_cache_bytes is not None and needed > request.kv_cache_bytes:
        raise NotEnoughMemoryError(
            f"batch_size={parameters.batch_size} and n_positions={parameters.n_positions} take "
            f"{format_byte_size(needed)} of KV cache, more than kv_cache_memory="
            f"{format_byte_size(request.kv_cache_bytes)}"
        )
