"""The manifest beside the compiled graphs: what they were compiled from, by what, and for what.

transformers-neuronx names its files by a hash of the graph and writes nothing else; whether they
match shows only after the weights have been read, and a wrong compiler does not show at all. So
our compile command writes this file last, and the loader compares it first.
"""

from __future__ import annotations

import hashlib
import json
import shlex
import sys
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import msgspec

from tgwui_k8s.errors import BrokenModelError
from tgwui_k8s.neuron.parameters import Parameters

MANIFEST = "tgwui-k8s.json"
PACKAGES = ("transformers-neuronx", "optimum-neuron", "neuronx-cc", "torch-neuronx")
"""Distributions whose versions the graphs depend on."""

_GRAPH_FREE_KEYS = ("_name_or_path", "architectures", "transformers_version", "use_cache")
"""Keys of config.json that change no graph; so do dtypes (see amp) and ids of special tokens."""


_DEFAULTS = {field.name: field.default for field in msgspec.structs.fields(Parameters)}


class Manifest(msgspec.Struct, frozen=True, kw_only=True):
    """One set of artifacts."""

    parameters: Parameters
    versions: dict[str, str]
    """By distribution; absent where it was not installed."""
    config_hash: str
    python_prefix: str
    """The graphs' names depend on the path of the Python environment."""
    files: dict[str, int]
    """Name and size of every graph."""
    format: int = 1


@dataclass(frozen=True)
class Difference:
    """Why artifacts do not match, as one line for the operator."""

    parameter: str
    compiled: str
    wanted: str

    def __str__(self) -> str:
        """For a message."""
        return f"{self.parameter} is {self.wanted}, compiled for {self.compiled}"


def current_versions() -> dict[str, str]:
    """Versions of the Neuron software here; reads metadata and imports nothing."""
    found = {}
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found


def config_hash(config: Mapping[str, Any]) -> str:
    """A name for the part of a config.json that shapes the graphs: fine-tunes share them."""
    kept = {
        key: value
        for key, value in config.items()
        if key not in _GRAPH_FREE_KEYS and not key.endswith(("dtype", "_token_id"))
    }
    return hashlib.sha256(json.dumps(kept, sort_keys=True, default=str).encode()).hexdigest()[:16]


def make_manifest(parameters: Parameters, config: Mapping[str, Any], folder: Path) -> Manifest:
    """The manifest for graphs that were just written into `folder`."""
    return Manifest(
        parameters=parameters,
        versions=current_versions(),
        config_hash=config_hash(config),
        python_prefix=sys.prefix,
        files={file.name: file.stat().st_size for file in graph_files(folder)},
    )


def write_manifest(manifest: Manifest, folder: Path) -> None:
    """Put it beside the graphs."""
    content = msgspec.json.format(msgspec.json.encode(manifest), indent=2)
    (folder / MANIFEST).write_bytes(content + b"\n")


def read_manifest(folder: Path) -> Manifest | None:
    """The manifest in a folder of artifacts; None where there is none.

    Raises `BrokenModelError` where it cannot be read.
    """
    path = folder / MANIFEST
    try:
        return msgspec.json.decode(path.read_bytes(), type=Manifest)
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        raise BrokenModelError(f"cannot read {path}: {error.strerror}") from None
    except msgspec.DecodeError as error:
        raise BrokenModelError(f"{path} is no manifest of compiled artifacts: {error}") from None


def differences(
    manifest: Manifest, parameters: Parameters, config: Mapping[str, Any], folder: Path
) -> list[Difference]:
    """Everything in which the artifacts do not match; empty where they do."""
    found = [
        Difference(name, _show(compiled), _show(wanted))
        for name in Parameters.__struct_fields__
        if (compiled := getattr(manifest.parameters, name)) != (wanted := getattr(parameters, name))
    ]
    here = current_versions()
    for package in sorted(manifest.versions.keys() | here.keys()):
        before, now = manifest.versions.get(package, "none"), here.get(package, "none")
        if before != now:
            found.append(Difference(f"version of {package}", before, now))
    if manifest.config_hash != (now := config_hash(config)):
        found.append(Difference("model's config.json (hash)", manifest.config_hash, now))
    if manifest.python_prefix != sys.prefix:
        found.append(
            Difference("path of the Python environment", manifest.python_prefix, sys.prefix)
        )
    return [*found, *_wrong_files(manifest, folder)]


def compile_command(path: Path, parameters: Parameters, artifacts: Path) -> str:
    """The command that makes artifacts which match."""
    words = ["tgwui-k8s", "neuron", "compile", str(path)]
    words += ["--tp-degree", str(parameters.tp_degree), "--batch-size", str(parameters.batch_size)]
    words += ["--n-positions", str(parameters.n_positions), "--amp", parameters.amp]
    words += ["--context-buckets", ",".join(map(str, parameters.context_buckets))]
    if parameters.quantization != "none":
        words += ["--neuron-quantization", parameters.quantization]
    if parameters.mode == "sample":
        words += ["--neuron-mode", "sample"]
    for name in ("gqa", "attention_layout", "collectives_layout", "fuse_qkv"):
        if (value := getattr(parameters, name)) != _DEFAULTS[name]:
            words += ["--loader-option", f"{name}={value}"]
    words += ["--neuron-artifacts", str(artifacts)]
    return shlex.join(words)


def graph_files(folder: Path) -> list[Path]:
    """The compiled graphs in a folder; empty where there are none, or no folder."""
    return sorted(folder.glob("*.neff"))


def _wrong_files(manifest: Manifest, folder: Path) -> Iterable[Difference]:
    for name, size in sorted(manifest.files.items()):
        try:
            present = (folder / name).stat().st_size
        except OSError:
            yield Difference(f"graph {name}", f"{size} bytes", "missing")
            continue
        if present != size:
            yield Difference(f"graph {name}", f"{size} bytes", f"{present} bytes long")


def _show(value: Any) -> str:
    return ",".join(map(str, value)) if isinstance(value, tuple) else str(value)
