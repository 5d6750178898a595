"""From settings to what the engine needs: which model, which loader, how large.

Used by whoever starts an engine: the server and `LLM`. Runs before any heavy library is imported.
"""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path

from tgwui_k8s.config import EngineSection, ModelSettings, Settings
from tgwui_k8s.contract import LoadRequest
from tgwui_k8s.engine.messages import EngineSettings
from tgwui_k8s.errors import StartupError, UnsupportedModelError
from tgwui_k8s.settings import loader_options
from tgwui_k8s.storage.adapter_dir import named_adapters
from tgwui_k8s.storage.adapter_files import AdapterFiles
from tgwui_k8s.storage.infer import infer_loader
from tgwui_k8s.storage.loader_names import (
    FAKE,
    LLAMA_CPP,
    NEURON,
    TRANSFORMERS,
    VLLM,
    canonical_loader_name,
)
from tgwui_k8s.storage.model_dir import DEMO, resolve_model

AUTO = "auto"

_SHARING = {
    TRANSFORMERS: "tensor_parallel_size",
    VLLM: "tensor_parallel_size",
    NEURON: "tp_degree",
}
"""The loaders that lay one model on several devices, and what each calls their number."""


def load_request(settings: Settings, *, over_http: bool = False) -> LoadRequest:
    """Find the model, infer its loader, and put everything a loader needs in one message.

    `over_http`: the model's name came from a client (see `resolve_model`). Raises a
    `StartupError` where the model or its loader cannot be.
    """
    model, engine = settings.model, settings.engine
    path, loader = _find_model(model, over_http=over_http)
    return LoadRequest(
        model_path=str(path),
        loader=loader,
        loader_is_inferred=model.loader.lower() == AUTO,
        dtype=model.dtype,
        device=model.device,
        max_model_len=model.max_model_len,
        max_num_seqs=engine.max_num_seqs,
        max_num_batched_tokens=engine.max_num_batched_tokens,
        kv_cache_bytes=engine.kv_cache_memory,
        memory_limit_bytes=engine.memory_limit,
        num_threads=engine.num_threads,
        trust_remote_code=model.trust_remote_code,
        prefetch=model.prefetch,
        adapters=_adapters(model, path),
        options=_options(settings, loader),
    )


def engine_settings(engine: EngineSection) -> EngineSettings:
    """The engine's own settings; a token budget of None is decided when the device is known."""
    return EngineSettings(
        max_num_seqs=engine.max_num_seqs,
        max_num_batched_tokens=engine.max_num_batched_tokens,
        max_waiting_requests=engine.max_waiting_requests,
    )


def served_names(model: ModelSettings, path: Path) -> tuple[str, ...]:
    """The names clients use; the first is the one reported. `path` is where the model lies."""
    if model.served_model_name:
        return model.served_model_name
    return (DEMO if model.model == DEMO else path.name,)


def _adapters(model: ModelSettings, path: Path) -> dict[str, str] | None:
    """Checked here already: an adapter that cannot be loaded need not wait for the weights."""
    if not model.lora and model.lora_dir is None:
        return None
    adapters = named_adapters(model.lora, model.lora_dir)
    for name, folder in adapters.items():
        if name in served_names(model, path):
            raise StartupError(f"--lora '{name[:100]}' has the name of the model itself")
        AdapterFiles.read(Path(folder))
    return adapters


def _options(settings: Settings, loader: str) -> dict[str, str]:
    """What `--loader-option` says, and the flags that are the chosen loader's options.

    Raises `UnsupportedModelError` for one loader's flags with another.
    """
    options = loader_options(settings.model.loader_option)
    if settings.model.load_in_8bit or settings.model.load_in_4bit:
        options.setdefault("weights", "int8" if settings.model.load_in_8bit else "int4")
    if settings.engine.gpu_memory_fraction is not None:
        options.setdefault("gpu_memory_fraction", str(settings.engine.gpu_memory_fraction))
    for section, owner in ((settings.neuron, NEURON), (settings.llama_cpp, LLAMA_CPP)):
        for field in fields(section):
            value = getattr(section, field.name)
            if value == field.default:
                continue
            if loader != owner:
                raise UnsupportedModelError(
                    f"--{field.name.replace('_', '-')} is for the loader {owner}, and "
                    f"'{settings.model.model}' gets {loader}: leave it out, or say --loader {owner}"
                )
            options.setdefault(field.name.removeprefix("neuron_"), str(value))
    num_devices = settings.model.tensor_parallel_size
    if num_devices is not None and (num_devices > 1 or loader == NEURON):
        if loader not in _SHARING:
            raise UnsupportedModelError(
                f"--tensor-parallel-size is for the loaders {', '.join(_SHARING)}, and "
                f"'{settings.model.model}' gets {loader}: leave it out, or name one with --loader"
            )
        options.setdefault(_SHARING[loader], str(num_devices))
    return options


def _find_model(model: ModelSettings, *, over_http: bool) -> tuple[Path, str]:
    if model.loader.lower() == AUTO:
        path = resolve_model(model.model, model.model_dir, over_http=over_http)
        return path, infer_loader(path).loader
    loader = canonical_loader_name(model.loader)
    if loader == FAKE and not over_http:  # it reads no files, so that any name will do
        return Path(model.model), loader
    path = resolve_model(model.model, model.model_dir, over_http=over_http)
    # The fake loader's words have a tokenizer of their own: the folder's must not be found.
    return Path(model.model) if loader == FAKE else path, loader
