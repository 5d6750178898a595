"""Where the parts of a model for Neuron lie: checkpoint, tokenizer, compiled graphs.

NAME/model, NAME/tokenizer, NAME/neuron_artifacts     apart, as text-generation-webui keeps them
NAME/config.json, weights, tokenizer, ...             a plain folder; neuron_artifacts/ beside
NAME/checkpoint, NAME/compiled, NAME/config.json      optimum-neuron's export
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from tgwui_k8s.errors import BrokenModelError
from tgwui_k8s.storage.model_dir import tokenizer_folder
from tgwui_k8s.storage.model_files import ModelFiles

ARTIFACTS = "neuron_artifacts"

Library = Literal["transformers-neuronx", "optimum-neuron"]
TRANSFORMERS_NEURONX: Library = "transformers-neuronx"
OPTIMUM_NEURON: Library = "optimum-neuron"
LIBRARIES: tuple[Library, ...] = (TRANSFORMERS_NEURONX, OPTIMUM_NEURON)


@dataclass(frozen=True)
class NeuronFolder:
    """A model's folders. `artifacts` need not exist yet."""

    path: Path
    model: Path
    tokenizer: Path
    artifacts: Path
    library: Library
    """Which library the layout belongs to."""


def find_layout(path: Path, artifacts: str | None = None) -> NeuronFolder:
    """The folders of the model at `path`; `artifacts` says where graphs lie instead.

    Raises `BrokenModelError` where there is no config.json.
    """
    files = ModelFiles.read(path)
    model = path / "model" if "model" in files.folders else path
    if not (model / "config.json").is_file():
        raise BrokenModelError(
            f"{model} has no config.json: a model for Neuron is a Hugging Face folder, or "
            f"NAME/model beside NAME/tokenizer and NAME/{ARTIFACTS}"
        )
    is_optimum = (
        {"checkpoint", "compiled"} <= files.folders
        or "neuron_config.json" in files.names
        or "neuron" in files.config
    )
    return NeuronFolder(
        path=path,
        model=model,
        tokenizer=tokenizer_folder(path),
        artifacts=Path(artifacts) if artifacts else _artifacts(path, files),
        library=OPTIMUM_NEURON if is_optimum else TRANSFORMERS_NEURONX,
    )


def _artifacts(path: Path, files: ModelFiles) -> Path:
    """Beside the model, or the folder itself where graphs lie between the weights."""
    return path if files.has(r".*\.neff") else path / ARTIFACTS
