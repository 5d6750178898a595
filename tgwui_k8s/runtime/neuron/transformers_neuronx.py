"""transformers-neuronx behind our words: build, load, prefill, decode, sample.

Written for 0.13 (Neuron SDK 2.25), the last release. The library swallows what it does not know
and guesses what it is not told, so every call here is complete and of exact types.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from tgwui_k8s.errors import UnsupportedModelError
from tgwui_k8s.neuron.parameters import Parameters
from tgwui_k8s.runtime.neuron.faults import explained
from tgwui_k8s.runtime.neuron.sampling import Cancelled, SampleCall

_CLASSES: dict[str, str] = {
    "llama": "LlamaForSampling",
    "code_llama": "LlamaForSampling",
    "mistral": "MistralForSampling",
    "mixtral": "MixtralForSampling",
    "bloom": "BloomForSampling",
    "gpt2": "GPT2ForSamplingWithContextBroadcasting",
    "gptj": "GPTJForSampling",
    "gpt_neox": "GPTNeoXForSampling",
    "opt": "OPTForSampling",
}
_FULL_SAMPLING = frozenset({"llama", "code_llama", "mistral", "mixtral"})
"""Types whose sample() takes more than top_k, and ends at end tokens."""
_LACKING = ("temperature", "top_p", "no_repeat_ngram_size", "stop_token_ids")
_UNSAVED = frozenset({"gptj", "gpt_neox"})
"""Types without save() and load(), and without context buckets."""
_NUMBER_ONLY = _UNSAVED | {"gpt2", "opt"}
"""Types whose `n_positions` cannot be a list."""

_NEVER = -1
"""As end token: go on to the full length."""


class TransformersNeuronx:
    """One model. One call at a time: it has one KV cache and no lock."""

    def __init__(self, model: Any, model_type: str, parameters: Parameters) -> None:
        """Use `build`."""
        self.ends_at_tokens = model_type in _FULL_SAMPLING
        self.lacking = () if self.ends_at_tokens else _LACKING
        self._model = model
        self._n_positions = parameters.n_positions

    @classmethod
    def build(
        cls,
        folder: Path,
        model_type: str,
        parameters: Parameters,
        *,
        compile_workers: int | None = None,
    ) -> TransformersNeuronx:
        """Make the model from a Hugging Face folder; touches no device and reads no weights."""
        with explained("transformers-neuronx"):
            library = import_module("transformers_neuronx")
            settings: dict[str, Any] = {
                "batch_size": parameters.batch_size,
                "n_positions": _positions(model_type, parameters),
                "amp": parameters.amp,
                "tp_degree": parameters.tp_degree,
            }
            if model_type not in _UNSAVED:
                settings["context_length_estimate"] = list(parameters.context_buckets)
                settings["neuron_config"] = _neuron_config(library, parameters, compile_workers)
            model_class = getattr(library, _CLASSES[model_type])
            return cls(model_class.from_pretrained(str(folder), **settings), model_type, parameters)

    @staticmethod
    def check_can_save(model_type: str) -> None:
        """Raise `UnsupportedModelError` for the classes that cannot keep compiled graphs."""
        if model_type in _UNSAVED:
            raise UnsupportedModelError(
                f"transformers-neuronx cannot save compiled graphs of {model_type}: they would be "
                "compiled at every start, which needs --neuron-compile-on-start"
            )

    # ------------------------------------------------------------------------------- life cycle

    def load(self, artifacts: Path) -> None:
        """Take the cores, read the weights and the compiled graphs. Never compiles."""
        with explained("loading onto the NeuronCores"):
            self._model.load(str(artifacts))
            self._model.to_neuron()

    def compile_and_load(self) -> None:
        """Take the cores, read the weights and compile every graph."""
        with explained("compiling"):
            self._model.to_neuron()

    def compile_only(self) -> None:
        """Compile without a device; the model cannot run afterwards."""
        with explained("compiling"):
            self._model.cpu_compile()

    def save(self, folder: Path) -> None:
        """Write the compiled graphs."""
        with explained("saving the compiled graphs"):
            self._model.save(str(folder))

    def close(self) -> None:
        """Forget the model. Its cores are free when the process has exited."""
        self._model = None

    # ----------------------------------------------------------------------- continuous batching

    def prefill(self, slot: int, token_ids: Sequence[int]) -> npt.NDArray[np.float32]:
        """Compute a prompt into a slot, whatever the slot held; logits [vocab] of its last token.

        A prompt of one token is padded to two: one column would be a decode, which writes into
        position 0 of every slot that is left out of it.
        """
        width = max(2, len(token_ids))
        ids = torch.zeros(1, width, dtype=torch.int64)
        ids[0, : len(token_ids)] = torch.as_tensor(token_ids, dtype=torch.int64)
        positions = torch.zeros(1, width, dtype=torch.int32)
        positions[0, : len(token_ids)] = torch.arange(len(token_ids), dtype=torch.int32)
        slots = torch.tensor([slot], dtype=torch.int32)
        return _to_numpy(self._model(ids, cache_ids=positions, start_ids=slots))[0]

    def decode(
        self, slots: Sequence[int], positions: Sequence[int], token_ids: Sequence[int]
    ) -> npt.NDArray[np.float32]:
        """One more token for every slot, written at its position; logits [slots, vocab].

        Every slot that shall go on must be among them.
        """
        return _to_numpy(
            self._model(
                torch.tensor(token_ids, dtype=torch.int64)[:, None],
                cache_ids=torch.tensor(positions, dtype=torch.int32)[:, None],
                start_ids=torch.tensor(slots, dtype=torch.int32),
            )
        )

    # ------------------------------------------------------------------------ the library's loop

    def sample(self, call: SampleCall, on_token: Callable[[int], None]) -> None:
        """Generate for one prompt; `on_token` gets every new token, the end token included.

        Ends early when `call.cancelled` is set. The lengths are checked here, because the
        library's own answer to a wrong one is a bare `StopIteration`.
        """
        length = len(call.prompt) + call.max_tokens
        if not 0 < len(call.prompt) < length <= self._n_positions:
            raise ValueError(f"{length} positions asked for, {self._n_positions} compiled")
        torch.default_generator.manual_seed(call.seed)  # torch.manual_seed would ask CUDA
        options: dict[str, Any] = {"top_k": call.top_k, "streamer": _Streamer(call, on_token)}
        if self.ends_at_tokens:
            options |= {
                "top_p": call.top_p,
                "temperature": call.temperature,
                "eos_token_override": list(call.end_token_ids) or _NEVER,
                "stopping_criteria_list": _stopping(call),
                "no_repeat_ngram_size": call.no_repeat_ngram_size or None,
            }
        try:
            self._model.sample(torch.tensor([call.prompt], dtype=torch.int64), length, **options)
        except Cancelled:
            return
        except StopIteration:
            raise RuntimeError("the model ran out of compiled positions") from None


class _Streamer:
    """What sample() reports to. It has no length, because an empty one would be ignored."""

    def __init__(self, call: SampleCall, on_token: Callable[[int], None]) -> None:
        self._call = call
        self._on_token = on_token

    def put(self, tokens: torch.Tensor) -> None:
        """One new token, shape (1, 1). An exception here ends sample()."""
        if self._call.cancelled.is_set():
            raise Cancelled
        self._on_token(int(tokens.item()))

    def end(self) -> None:
        """Not called when sample() fails, so nothing depends on it."""


def _stopping(call: SampleCall) -> Any:
    module = import_module("transformers_neuronx.stopping_criteria")

    def is_cancelled(input_ids: torch.Tensor, probs: torch.Tensor, **_: Any) -> bool:
        return call.cancelled.is_set()

    return module.StoppingCriteriaList([is_cancelled])


def _positions(model_type: str, parameters: Parameters) -> int | list[int]:
    """A list is taken as it is; a number compiles a graph for every power of two below it too.

    The older classes compare it with their positions, so that it must be a number.
    """
    return parameters.n_positions if model_type in _NUMBER_ONLY else [parameters.n_positions]


def _neuron_config(library: Any, parameters: Parameters, compile_workers: int | None) -> Any:
    settings: dict[str, Any] = {
        "attention_layout": parameters.attention_layout,
        "collectives_layout": parameters.collectives_layout,
        "fuse_qkv": parameters.fuse_qkv,
    }
    if parameters.gqa:
        settings["group_query_attention"] = library.GQA(parameters.gqa)
    if parameters.quantization == "s8":
        settings["quant"] = library.QuantizationConfig(
            quant_dtype="s8", dequant_dtype=parameters.amp
        )
    if parameters.mode == "continuous":
        settings["continuous_batching"] = library.ContinuousBatchingConfig(
            batch_size_for_shared_caches=parameters.batch_size
        )
    if compile_workers:
        settings["compilation_worker_count"] = compile_workers
    return library.NeuronConfig(**settings)


def _to_numpy(logits: torch.Tensor) -> npt.NDArray[np.float32]:
    return logits.detach().to(torch.float32).numpy()
