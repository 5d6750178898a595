"""Embeddings: models in sentence-transformers' folders, encoders and decoders, CPU and CUDA.

`modules.json` lists what a text goes through: a Transformers model, a pooling of its hidden states,
and often a normalisation. Nothing is written, nothing comes from the network.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
import transformers
from transformers import AutoModel, PreTrainedConfig, PreTrainedModel

from tgwui_k8s.contract import (
    Capabilities,
    LoadProgress,
    LoadRequest,
    ModelInfo,
    ProgressCallback,
)
from tgwui_k8s.errors import BrokenModelError, UnsupportedModelError
from tgwui_k8s.runtime.device_memory import free_memory
from tgwui_k8s.runtime.limits import cpu_quota
from tgwui_k8s.runtime.memory import check_weights_fit
from tgwui_k8s.runtime.prefetching import reading_ahead
from tgwui_k8s.runtime.sentence_modules import Pooling, SentenceModules, read_modules
from tgwui_k8s.runtime.transformers_config import choose_device, choose_dtype, read_config
from tgwui_k8s.storage.identity import fingerprint
from tgwui_k8s.storage.model_files import read_json
from tgwui_k8s.storage.weights import WeightFiles, find_weights

Pool = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
"""Hidden states [n, length, size] and lengths [n] to vectors [n, size]."""


class EmbeddingsLoader:
    """contract.Loader for models that turn texts into vectors."""

    name: ClassVar[str] = "Embeddings"
    options: ClassVar[dict[str, str]] = {}

    def load(self, request: LoadRequest, progress: ProgressCallback) -> SentenceEmbedder:
        """See `contract.Loader`."""
        if unknown := sorted(request.options):
            raise UnsupportedModelError(f"the Embeddings loader has no option '{unknown[0]}'")
        modules = read_modules(request.path)
        folder = modules.transformer
        config = read_config(folder, trust_remote_code=request.trust_remote_code)
        device = choose_device(request)
        if device.type == "cpu":
            torch.set_num_threads(request.num_threads or cpu_quota())
        torch.set_float32_matmul_precision("highest")
        dtype = choose_dtype(config, request, device)
        weights = find_weights(folder)
        check_weights_fit(weights.num_bytes, free_memory(request, device))
        with reading_ahead(request, weights, progress) as note:
            note(LoadProgress("loading", 0, weights.num_bytes))
            model = _build(folder, request, dtype, device)
        progress(LoadProgress("loading", weights.num_bytes, weights.num_bytes))
        info = _describe(model, modules, weights, request)
        return SentenceEmbedder(model, modules, info)


class SentenceEmbedder:
    """contract.Embedder: a Transformers model, a pooling, and a normalisation."""

    def __init__(self, model: PreTrainedModel, modules: SentenceModules, info: ModelInfo) -> None:
        self.info = info
        self._model = model
        self._pool = POOLINGS[modules.pooling]
        self._normalizes = modules.normalizes
        self._pad_token_id = getattr(model.config, "pad_token_id", None) or 0

    @torch.inference_mode()
    def embed(self, token_id_lists: Sequence[Sequence[int]]) -> Any:
        """float32 [len(token_id_lists), size]."""
        device = self._model.device
        lengths = torch.tensor([len(token_ids) for token_ids in token_id_lists])
        rows = torch.full((len(lengths), int(lengths.max())), self._pad_token_id)
        for row, token_ids in zip(rows, token_id_lists, strict=True):
            row[: len(token_ids)] = torch.tensor(token_ids)
        mask = torch.arange(rows.shape[1])[None] < lengths[:, None]
        output = self._model(
            input_ids=rows.to(device), attention_mask=mask.long().to(device), return_dict=True
        )
        vectors = self._pool(output.last_hidden_state.float(), lengths.to(device))
        if self._normalizes:
            vectors = torch.nn.functional.normalize(vectors, dim=-1)
        return vectors.cpu().numpy().astype(np.float32, copy=False)

    def warm_up(self) -> None:
        """One short text."""
        self.embed([[0, 0]])

    def close(self) -> None:
        """Give the weights back."""
        del self._model


def _mask(lengths: torch.Tensor, states: torch.Tensor) -> torch.Tensor:
    positions = torch.arange(states.shape[1], device=states.device)
    return (positions[None] < lengths[:, None])[..., None]


def _mean(states: torch.Tensor, lengths: torch.Tensor) -> torch.Tensor:
    return (states * _mask(lengths, states)).sum(1) / lengths[:, None]


def _max(states: torch.Tensor, lengths: torch.Tensor) -> torch.Tensor:
    return states.masked_fill(~_mask(lengths, states), -torch.inf).amax(1)


def _first(states: torch.Tensor, lengths: torch.Tensor) -> torch.Tensor:
    return states[:, 0]


def _last(states: torch.Tensor, lengths: torch.Tensor) -> torch.Tensor:
    return states[torch.arange(len(states), device=states.device), lengths - 1]


POOLINGS: dict[Pooling, Pool] = {"mean": _mean, "max": _max, "cls": _first, "lasttoken": _last}


def _build(
    folder: Path, request: LoadRequest, dtype: torch.dtype, device: torch.device
) -> PreTrainedModel:
    """The model on the device. Raises `BrokenModelError`, `UnsupportedModelError`."""
    transformers.utils.logging.disable_progress_bar()
    try:
        model, report = AutoModel.from_pretrained(
            folder,
            dtype=dtype,
            trust_remote_code=request.trust_remote_code,
            local_files_only=True,
            output_loading_info=True,
        )
    except Exception as error:  # model classes raise what they like
        reason = str(error).splitlines()[0][:300] if str(error) else type(error).__name__
        raise BrokenModelError(f"{folder}: {reason}") from error
    # A pooler on top of the hidden states is not used here, and many checkpoints have none.
    missing = sorted(key for key in report["missing_keys"] if not key.startswith("pooler."))
    if missing:
        raise BrokenModelError(f"{folder}: weights are missing, the first is '{missing[0]}'")
    return model.to(device).requires_grad_(False).eval()


def _describe(
    model: PreTrainedModel, modules: SentenceModules, weights: WeightFiles, request: LoadRequest
) -> ModelInfo:
    parameters = list(model.parameters())
    dtype = str(model.dtype).removeprefix("torch.")
    numerics = (
        f"{EmbeddingsLoader.name} {transformers.__version__}",
        f"torch {torch.__version__}",
        dtype,
    )
    size = model.config.get_text_config().hidden_size
    return ModelInfo(
        loader=EmbeddingsLoader.name,
        architecture=type(model).__name__,
        dtype=dtype,
        device=str(model.device),
        max_model_len=_max_model_len(model.config, modules, request),
        vocab_size=model.get_input_embeddings().weight.shape[0],
        eos_token_ids=(),
        num_parameters=sum(parameter.numel() for parameter in parameters),
        weight_bytes=sum(parameter.nbytes for parameter in parameters),
        fingerprint=fingerprint(
            weights.files, read_json(modules.transformer / "config.json"), numerics
        ),
        capabilities=Capabilities(
            generation=False,
            embeddings=True,
            logprobs=False,
            prompt_logprobs=False,
            guidance=False,
            resume=False,
        ),
        embedding_sizes=(size, *_smaller_sizes(model.config, size)),
        details={"pooling": modules.pooling, "normalizes": modules.normalizes},
    )


def _max_model_len(config: PreTrainedConfig, modules: SentenceModules, request: LoadRequest) -> int:
    """The shortest of what was asked for, trained for, and set in the folder."""
    trained = getattr(config.get_text_config(), "max_position_embeddings", None)
    if config.model_type in ("roberta", "xlm-roberta", "camembert") and trained is not None:
        trained -= config.pad_token_id + 1  # its positions start after the padding's
    limits = [limit for limit in (modules.max_length, trained) if limit is not None]
    longest = min(limits, default=512)
    if request.max_model_len is not None and request.max_model_len > longest:
        raise UnsupportedModelError(
            f"--max-model-len {request.max_model_len}: the model takes {longest} tokens at most"
        )
    return request.max_model_len or longest


def _smaller_sizes(config: PreTrainedConfig, size: int) -> tuple[int, ...]:
    """The sizes a vector may be cut to: of models trained for it (Matryoshka), by their word."""
    listed = getattr(config, "matryoshka_dimensions", None)
    if isinstance(listed, list):
        return tuple(sorted((one for one in listed if one < size), reverse=True))
    return tuple(range(size - 1, 0, -1)) if getattr(config, "is_matryoshka", False) else ()
