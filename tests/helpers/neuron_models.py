"""Tiny models for the Neuron loader, compiled by the stand-in for Neuron's software."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.helpers.neuron import STANDIN_PACKAGES, NeuronHost, standin_path
from tgwui_k8s.contract import Loader, LoadRequest
from tgwui_k8s.neuron.artifacts import ArtifactCompiler

TINY = {"batch_size": 4, "n_positions": 128, "tp_degree": 2, "context_buckets": "16,128"}


def as_options(values: Mapping[str, Any]) -> dict[str, str]:
    """Options as `LoadRequest` has them."""
    return {name: str(value) for name, value in values.items()}


def compile_model(loader: Loader, path: Path, **options: Any) -> Path:
    """Compile the model at `path` and give the device back; returns the artifacts' folder."""
    assert isinstance(loader, ArtifactCompiler)
    request = LoadRequest(model_path=str(path), loader="Neuron", options=as_options(options))
    folder = loader.compile(request, lambda progress: None, cpu_only=False)
    release_device()
    return folder


def release_device() -> None:
    """What the end of the process does."""
    if "neuron_double.device" in sys.modules:
        sys.modules["neuron_double.device"].device.release()


@contextmanager
def neuron_software(folder: Path) -> Iterator[NeuronHost]:
    """The stand-in importable, with two cores, for longer than one test."""
    host = NeuronHost(folder)
    with pytest.MonkeyPatch.context() as patch:
        for name, value in host.env(NEURON_RT_NUM_CORES="2").items():
            if name.startswith(("NEURON_RT_", "NEURON_STANDIN_")):
                patch.setenv(name, value)
        patch.syspath_prepend(standin_path())
        importlib.invalidate_caches()
        try:
            yield host
        finally:
            release_device()
            for module in list(sys.modules):
                if module.partition(".")[0] in STANDIN_PACKAGES:
                    del sys.modules[module]
    assert host.violations() == []
