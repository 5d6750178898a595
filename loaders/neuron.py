"""The `Neuron` loader: Llama-family models on inf2 and trn1, over as many NeuronCores as wanted.

Everything is checked before weights are read: the machine's cores, the topology, the memory of a
core, and the compiled artifacts against their manifest. Without matching artifacts it refuses to
load, because compiling takes up to hours; `tgwui-k8s neuron compile` does that ahead of time.
"""

from __future__ import annotations

import logging
import os
from pathlib import Path
from typing import Any, ClassVar

from tgwui_k8s.contract import (
    Backend,
    Capabilities,
    LoadProgress,
    LoadRequest,
    ModelInfo,
    ModelRunner,
    ProgressCallback,
)
from tgwui_k8s.errors import StartupError, UnsupportedModelError
from tgwui_k8s.neuron.artifacts import new_artifacts
from tgwui_k8s.neuron.examine import Examination, examine
from tgwui_k8s.neuron.manifest import current_versions
from tgwui_k8s.neuron.options import OPTIONS
from tgwui_k8s.neuron.parameters import check_cores
from tgwui_k8s.neuron.visible_cores import take_cores
from tgwui_k8s.runtime.neuron.optimum_neuron import OptimumNeuron
from tgwui_k8s.runtime.neuron.sample_backend import SampleBackend, sample_capabilities
from tgwui_k8s.runtime.neuron.slot_runner import SlotRunner
from tgwui_k8s.runtime.neuron.transformers_neuronx import TransformersNeuronx
from tgwui_k8s.runtime.prefetching import reading_ahead
from tgwui_k8s.storage.identity import eos_token_ids, fingerprint
from tgwui_k8s.storage.weights import WeightFiles, find_weights

logger = logging.getLogger(__name__)

_DTYPES = {"f32": "float32", "f16": "float16", "bf16": "bfloat16"}


class NeuronLoader:
    """contract.Loader for NeuronCores of the second generation."""

    name: ClassVar[str] = "Neuron"
    options: ClassVar[dict[str, str]] = OPTIONS

    def load(self, request: LoadRequest, progress: ProgressCallback) -> ModelRunner | Backend:
        """A runner that batches continuously, or a backend for the models that cannot.

        Raises a `StartupError` that names the parameter and what to do, before weights are read,
        where the machine, the memory or the artifacts do not fit.
        """
        case = examine(request, os.environ)
        check_cores(case.parameters, case.host)
        if case.unusable is not None and (case.export or not case.options.compile_on_start):
            raise StartupError(case.unusable)
        weights = _find_weights(case)
        take_cores(os.environ, case.parameters.tp_degree)
        total = weights.num_bytes
        if case.export is not None:
            with reading_ahead(request, weights, progress) as note:
                note(LoadProgress("loading", 0, total))
                exported = OptimumNeuron.load(case.folder.path)
            progress(LoadProgress("loading", total, total))
            return SampleBackend(exported, _describe(request, case, weights, exported.lacking))
        with reading_ahead(request, weights, progress) as note:
            model = _build(case)
            if case.unusable is None:
                note(LoadProgress("loading", 0, total))
                model.load(case.folder.artifacts)
            else:
                logger.warning("compiling at the start: %s", case.unusable)
                note(LoadProgress("compiling", 0, total))
                model.compile_and_load()
                _keep(case, model)
        progress(LoadProgress("loading", total, total))
        return _serve(case, model, _describe(request, case, weights, model.lacking))

    def compile(self, request: LoadRequest, progress: ProgressCallback, *, cpu_only: bool) -> Path:
        """Write artifacts; see `tgwui_k8s.neuron.artifacts.ArtifactCompiler`."""
        case = examine(request, os.environ)
        if case.export is not None:
            raise UnsupportedModelError(
                "optimum-neuron compiles its exports itself: optimum-cli export neuron"
            )
        TransformersNeuronx.check_can_save(case.model_type)
        weights = find_weights(case.folder.model)
        if not cpu_only:
            check_cores(case.parameters, case.host)
            take_cores(os.environ, case.parameters.tp_degree)
        with new_artifacts(case.folder.artifacts, case.parameters, case.config) as fresh:
            model = _build(case)
            progress(LoadProgress("compiling", 0, weights.num_bytes))
            if cpu_only:
                model.compile_only()
            else:
                model.compile_and_load()
            model.save(fresh)
        return case.folder.artifacts


def _find_weights(case: Examination) -> WeightFiles:
    if case.export is None:
        return find_weights(case.folder.model)
    return WeightFiles("safetensors", case.export.weights, {}, case.export.num_bytes)


# ------------------------------------------------------------------------------------- the model


def _build(case: Examination) -> TransformersNeuronx:
    return TransformersNeuronx.build(
        case.folder.model,
        case.model_type,
        case.parameters,
        compile_workers=case.options.compile_workers,
    )


def _keep(case: Examination, model: TransformersNeuronx) -> None:
    """Save what was compiled at the start, for the next start; a read-only volume is no fault."""
    try:
        TransformersNeuronx.check_can_save(case.model_type)
        with new_artifacts(case.folder.artifacts, case.parameters, case.config) as fresh:
            model.save(fresh)
    except StartupError as error:
        logger.warning("the compiled graphs are lost when this process ends: %s", error)


def _serve(case: Examination, model: TransformersNeuronx, info: ModelInfo) -> ModelRunner | Backend:
    if case.parameters.mode == "sample":
        return SampleBackend(model, info)
    return SlotRunner(
        model,
        info,
        num_slots=case.parameters.batch_size,
        n_positions=case.parameters.n_positions,
    )


def _describe(
    request: LoadRequest, case: Examination, weights: WeightFiles, lacking: tuple[str, ...]
) -> ModelInfo:
    parameters = case.parameters
    capabilities = Capabilities(prompt_logprobs=False)
    if parameters.mode == "sample":
        capabilities = sample_capabilities(lacking)
    folders = dict.fromkeys((case.folder.model, case.folder.tokenizer))
    eos = dict.fromkeys(token_id for folder in folders for token_id in eos_token_ids(folder))
    versions = current_versions()
    numerics = (str(parameters), *(f"{name} {found}" for name, found in versions.items()))
    return ModelInfo(
        loader=NeuronLoader.name,
        architecture=(case.config.get("architectures") or [case.model_type])[0],
        dtype=_DTYPES[parameters.amp],
        device="neuron",
        max_model_len=min(request.max_model_len or parameters.n_positions, parameters.n_positions),
        max_prompt_len=parameters.max_prompt_len,
        vocab_size=case.plan.shape.vocab,
        eos_token_ids=tuple(eos),
        num_parameters=case.plan.shape.num_parameters,
        weight_bytes=weights.num_bytes,
        quantization=parameters.quantization if parameters.quantization != "none" else None,
        fingerprint=fingerprint(weights.files, case.config, numerics),
        capabilities=capabilities,
        details=_details(case, versions),
    )


def _details(case: Examination, versions: dict[str, str]) -> dict[str, Any]:
    """Facts about cores and graphs for `/v1/internal/model/info`."""
    parameters, plan = case.parameters, case.plan
    used = plan.used_bytes(parameters.batch_size, parameters.n_positions)
    return {
        "library": parameters.library,
        "versions": versions,
        "mode": parameters.mode,
        "instance": case.host.instance,
        "neuroncores": parameters.tp_degree,
        "neuroncores_visible": case.host.num_cores,
        "neuroncore_memory_bytes": plan.core_bytes,
        "neuroncore_memory_used_bytes_estimate": used,
        "batch_size": parameters.batch_size,
        "n_positions": parameters.n_positions,
        "context_buckets": list(parameters.context_buckets),
        "padded_heads": list(plan.heads),
        "artifacts": str(case.folder.artifacts),
    }
