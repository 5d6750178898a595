"""An export of optimum-neuron, as its own small files describe it.

neuron_config.json, model.pt, checkpoint/weights/*.safetensors     since 0.2
config.json with a section "neuron", checkpoint/, compiled/        before
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tgwui_k8s.errors import BrokenModelError
from tgwui_k8s.neuron.layout import OPTIMUM_NEURON, NeuronFolder
from tgwui_k8s.neuron.manifest import Difference, current_versions
from tgwui_k8s.neuron.options import AMP_NAMES, NeuronOptions
from tgwui_k8s.neuron.parameters import Parameters
from tgwui_k8s.storage.model_files import read_json

_COMPARED = ("tp_degree", "amp", "batch_size", "n_positions")
"""Options that an operator may repeat; the others do not exist for an export."""


@dataclass(frozen=True)
class Export:
    """What was exported, and by what."""

    parameters: Parameters
    versions: dict[str, str]
    weights: tuple[Path, ...]
    num_bytes: int


def read_export(path: Path) -> Export:
    """Raises `BrokenModelError` that names what an export needs and this folder lacks."""
    config = read_json(path / "config.json")
    described: Any = config.get("neuron")
    if (path / "neuron_config.json").is_file():
        described = read_json(path / "neuron_config.json")
    if not isinstance(described, dict):
        raise BrokenModelError(
            f"{path} is no export of optimum-neuron: neither neuron_config.json nor a section "
            "'neuron' in config.json; make one with: optimum-cli export neuron"
        )
    if not (path / "model.pt").is_file() and not any((path / "compiled").glob("*.neff")):
        raise BrokenModelError(
            f"{path} has no compiled model: neither model.pt nor compiled/*.neff"
        )
    weights = tuple(sorted(path.rglob("*.safetensors")))
    if not weights:
        raise BrokenModelError(
            f"{path} has no weights (checkpoint/): optimum-neuron would download them; export "
            "with the weights, or copy the checkpoint there"
        )
    num_bytes = sum(file.stat().st_size for file in weights)
    return Export(_parameters(path, described), _versions(described), weights, num_bytes)


def why_export_unusable(export: Export, options: NeuronOptions, folder: NeuronFolder) -> str | None:
    """None where the export fits the options and the installed software; else what differs."""
    found = []
    for name in _COMPARED:
        wanted, exported = getattr(options, name), getattr(export.parameters, name)
        if wanted is not None and wanted != exported:
            found.append(Difference(name, str(exported), str(wanted)))
    here = current_versions()
    for package, before in export.versions.items():
        now = here.get(package, "none")
        if _public(now) != _public(before):
            found.append(Difference(f"version of {package}", before, now))
    if not found:
        return None
    return (
        f"the export in {folder.path} does not match: {'; '.join(map(str, found))}; export again "
        "with: optimum-cli export neuron --batch_size N --sequence_length N "
        "--tensor_parallel_size N --model MODEL FOLDER"
    )


def _parameters(path: Path, described: Mapping[str, Any]) -> Parameters:
    dtype = str(described.get("torch_dtype") or described.get("auto_cast_type") or "bf16")
    try:
        n_positions = int(described["sequence_length"])
        return Parameters(
            library=OPTIMUM_NEURON,
            mode="sample",
            tp_degree=int(described.get("tp_degree") or described["num_cores"]),
            amp=AMP_NAMES[dtype.removeprefix("torch.").lower()],
            batch_size=int(described["batch_size"]),
            n_positions=n_positions,
            context_buckets=(int(described.get("max_context_length") or n_positions),),
        )
    except (KeyError, TypeError, ValueError) as error:
        raise BrokenModelError(
            f"the description of the export in {path} has no usable {error}"
        ) from None


def _versions(described: Mapping[str, Any]) -> dict[str, str]:
    compiler = described.get("neuronxcc_version") or described.get("compiler_version")
    found = {
        "neuronx-cc": compiler,
        "optimum-neuron": described.get("optimum_neuron_version"),
    }
    return {package: str(version) for package, version in found.items() if version}


def _public(version: str) -> str:
    """Without the part behind "+", which metadata and module may give differently."""
    return version.split("+")[0]
