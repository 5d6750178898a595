"""The life of a model: made, loaded onto the device or compiled for it, saved, called."""

from __future__ import annotations

import contextlib
import threading
import time
import weakref
from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar

import torch
from neuron_double.artifacts import Graph, compile_graph, read_graph
from neuron_double.checkpoint import read_weights
from neuron_double.decoder import Step
from neuron_double.device import device
from neuron_double.journal import record, violation

from transformers_neuronx import bucket, dtypes, ops
from transformers_neuronx.config import NeuronConfig
from transformers_neuronx.module import PretrainedModel


class NeuronModelBase(PretrainedModel):
    """What every class shares. Subclasses make the decoder and say what shapes the graphs."""

    supports_continuous_batching: ClassVar[bool] = False

    def __init__(
        self,
        config: Any,
        *,
        n_positions: int | list[int],
        batch_size: int | list[int],
        amp: str,
        tp_degree: int,
        context_length_estimate: int | list[int] | None,
        neuron_config: NeuronConfig | None,
        unroll: tuple[int | None, int | None] = (None, None),
    ) -> None:
        super().__init__()
        self.config = config
        self.dtype_of_amp = dtypes.to_torch_dtype(amp)
        self.amp, self.tp_degree = amp, tp_degree
        self.neuron_config = neuron_config or NeuronConfig()
        self.batch_sizes = bucket.batch_sizes(batch_size)
        self.token_buckets = bucket.token_sizes(n_positions)
        self.context_buckets = bucket.context_sizes(context_length_estimate, self.token_buckets)
        self.max_positions = self.token_buckets[-1]
        self.num_parameters_read = 0
        self._unroll = unroll
        self._decoder: Any = None
        self._kernels: dict[str, bytes] | None = None
        self._artifacts: Path | None = None
        self._busy = threading.Lock()
        if self.continuous and not self.supports_continuous_batching:
            violation(f"{type(self).__name__} has no continuous batching")

    @property
    def continuous(self) -> bool:
        """Whether slots come and go."""
        return self.neuron_config.continuous_batching is not None

    # Life cycle

    def to_neuron(self) -> None:
        """Take the cores, read the weights, then read the graphs, or compile them.

        Raises RuntimeError in the runtime's words and FileNotFoundError where `load()` named a
        directory without the graphs.
        """
        begun = time.monotonic()
        with self._exclusively("to_neuron"):
            if self._decoder is not None:
                violation("to_neuron() was called twice on one model")
            ops.init(self.tp_degree)
            self._check_unroll()
            weights = self._cast(read_weights(self._weights_file()))
            self.num_parameters_read = sum(tensor.numel() for tensor in weights.values())
            if self._artifacts is None:
                self._compile_graphs()
            else:
                self._read_artifacts(self._artifacts)
            device.allocate(id(self), self._memory_bytes(), self.tp_degree)
            weakref.finalize(self, device.free, id(self))
            self._decoder = self._make_decoder(weights)
        record(
            "to_neuron",
            seconds=time.monotonic() - begun,
            loaded=self._artifacts is not None,
            compiles=0 if self._artifacts is not None else len(self._graphs()),
        )

    def cpu_compile(self) -> None:
        """Compile without a device; `save()` may follow, calls may not."""
        self._compile_graphs()

    def is_compiled(self) -> bool:
        """Whether graphs were compiled or read."""
        return self._kernels is not None

    def reset(self) -> None:
        """Clear the cache."""
        if self._decoder is not None:
            self._decoder.reset()

    # For subclasses

    def _make_decoder(self, weights: dict[str, torch.Tensor]) -> Any:
        raise NotImplementedError

    def _identity(self) -> dict[str, Any]:
        """The model's shape."""
        raise NotImplementedError

    def _memory_bytes(self) -> int:
        """Weights and cache, with what padding to `tp_degree` adds."""
        return self.num_parameters_read * self.dtype_of_amp.itemsize

    def _check_unroll(self) -> None:
        """Raises ValueError where `unroll` does not divide the number of layers."""

    def _run(self, step: Step, kind: str, bucket_size: int, **facts: Any) -> torch.Tensor:
        """One graph on the device."""
        if self._decoder is None:
            raise ValueError(
                "Attempted to use an uninitialized parameter: call to_neuron() before the model"
            )
        device.run()
        record("forward", kind=kind, bucket=bucket_size, rows=len(step.rows), **facts)
        with torch.no_grad():
            logits = self._decoder.step(step)
        return logits.to(getattr(torch, self.neuron_config.cast_logits_dtype))

    @contextlib.contextmanager
    def _exclusively(self, what: str) -> Iterator[None]:
        """One call at a time; an overlapping one would corrupt the cache."""
        if not self._busy.acquire(blocking=False):
            violation(f"{what}() overlaps another call on the same model")
            raise RuntimeError(f"{what}() overlaps another call on the same model")
        try:
            yield
        finally:
            self._busy.release()

    def _graphs(self) -> list[Graph]:
        decode = [
            Graph("decode", size, batch)
            for size in self.token_buckets
            for batch in self.batch_sizes
        ]
        batches = [1] if self.continuous else self.batch_sizes
        context = [
            Graph("context", size, batch) for size in self.context_buckets for batch in batches
        ]
        return decode + context

    def _compile_parameters(self) -> dict[str, Any]:
        return {
            "class": type(self).__name__,
            "amp": self.amp,
            "tp_degree": self.tp_degree,
            "batch_sizes": self.batch_sizes,
            "token_buckets": self.token_buckets,
            "context_buckets": self.context_buckets,
            "neuron_config": self.neuron_config.compiled(),
            "model": self._identity(),
            "unroll": self._unroll,
        }

    def _weights_file(self) -> Path:
        if self.weights_path is None:
            raise FileNotFoundError("the model was not made by from_pretrained()")
        return self.weights_path

    def _compile_graphs(self) -> None:
        parameters = self._compile_parameters()
        self._kernels = {
            graph.file_name(parameters): compile_graph(graph) for graph in self._graphs()
        }

    def _read_artifacts(self, folder: Path) -> None:
        if not folder.is_dir():
            raise FileNotFoundError(f"Did not find directory: {folder}")
        parameters = self._compile_parameters()
        self._kernels = {
            graph.file_name(parameters): read_graph(folder, graph, parameters)
            for graph in self._graphs()
        }

    def _cast(self, weights: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        return {name: tensor.to(self.dtype_of_amp) for name, tensor in weights.items()}


class SerializableModel(NeuronModelBase):
    """A model whose compiled graphs can be saved and loaded: all but GPT-J's and GPT-NeoX's."""

    def load(self, directory: str) -> None:
        """Remember where compiled graphs lie; `to_neuron()` will look."""
        record("load", directory=str(directory))
        if self._decoder is not None:
            violation("load() after to_neuron() has no effect")
        self._artifacts = Path(directory)

    def save(self, directory: str, sharded_weights: bool = False) -> None:
        """Write the compiled graphs into a flat directory, which is made first."""
        if sharded_weights:
            assert self.neuron_config.on_device_embedding, (
                "sharded_weights requires on_device_embedding"
            )
        folder = Path(directory)
        folder.mkdir(parents=True, exist_ok=True)
        if self._kernels is None:
            raise AttributeError("'NoneType' object has no attribute 'get_kernels'")
        for name, content in self._kernels.items():
            (folder / name).write_bytes(content)
        record("save", directory=str(directory), files=len(self._kernels))
        if sharded_weights:
            self._save_weights(folder)

    def _save_weights(self, folder: Path) -> None:
        raise NotImplementedError("the double saves no sharded weights of this class")
