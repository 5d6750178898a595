"""Compiled graphs as files: flat, `<20 hex>.neff`, named by what they were compiled from."""

from __future__ import annotations

import hashlib
import json
import os
import time
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

from neuron_double.journal import record, violation

MAGIC = "double of a NEFF"


@dataclass(frozen=True)
class Graph:
    """One compiled graph: "context" or "decode", for one bucket and one batch size."""

    kind: str
    bucket: int
    batch_size: int

    def file_name(self, parameters: Mapping[str, Any]) -> str:
        """A pure function of everything that was compiled, and of the library's version."""
        identity = {
            "graph": [self.kind, self.bucket, self.batch_size],
            "library": version("transformers-neuronx"),
            **parameters,
        }
        text = json.dumps(identity, sort_keys=True, default=repr)
        return hashlib.sha256(text.encode()).hexdigest()[:20] + ".neff"


def compile_graph(graph: Graph) -> bytes:
    """The content of the graph's file, which knows its compiler. Raises RuntimeError."""
    time.sleep(float(os.environ.get("NEURON_STANDIN_COMPILE_SECONDS", 0)))
    if os.environ.get("NEURON_STANDIN_COMPILER_FAILS") == "1":
        raise RuntimeError("Failed compilation with ['neuronx-cc', 'compile', '--target=trn1']")
    record("compile", kind=graph.kind, bucket=graph.bucket, batch_size=graph.batch_size)
    return json.dumps({"magic": MAGIC, "compiler": version("neuronx-cc")}).encode()


def read_graph(folder: Path, graph: Graph, parameters: Mapping[str, Any]) -> bytes:
    """The content of a graph's file.

    Raises FileNotFoundError for a missing one and RuntimeError for a damaged one. A file of
    another compiler loads, as it may do on hardware; that is a violation.
    """
    path = folder / graph.file_name(parameters)
    if not path.is_file():
        raise FileNotFoundError(
            "Could not find a matching NEFF for your HLO in this directory. "
            f"Ensure that the model you are trying to load is the same type and has the same "
            f"parameters as the one you saved, or call to_neuron() without load(): {folder}"
        )
    content = path.read_bytes()
    try:
        compiler = json.loads(content)["compiler"]
    except (ValueError, KeyError, TypeError):
        raise RuntimeError(f'nrt_load status=2 message="Invalid NEFF" ({path})') from None
    if compiler != version("neuronx-cc"):
        violation(f"loaded a NEFF of neuronx-cc {compiler} under {version('neuronx-cc')}")
    record("neff_loaded", kind=graph.kind, bucket=graph.bucket, batch_size=graph.batch_size)
    return content
