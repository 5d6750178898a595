"""Which loader a model needs: one table, content first, name last.

The first rule whose sign is found decides. A rule without a loader names a format that nothing
here runs, and what to use instead. `docs/loaders.md` is generated from the table.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from tgwui_k8s.errors import BrokenModelError, UnsupportedModelError
from tgwui_k8s.storage.loader_names import (
    AWQ,
    EMBEDDINGS,
    GPTQ,
    LLAMA_CPP,
    NEURON,
    TRANSFORMERS,
    VLLM,
)
from tgwui_k8s.storage.model_files import ModelFiles

GGUF_PATTERN = r"(?!.*(mmproj|imatrix)).*\.gguf"
"""Names of GGUF models. Not a model: the eye of a multi-modal one (`mmproj`), and what was measured
to quantize one well (`imatrix`)."""

WEIGHTS_PATTERN = r".*\.(safetensors|bin|pt|pth)"


@dataclass(frozen=True)
class Inference:
    """A verdict and the sign that led to it."""

    loader: str
    reason: str


@dataclass(frozen=True)
class Rule:
    """If `matches`, the model is for `loader`; with None it is refused with `advice`."""

    sign: str
    matches: Callable[[ModelFiles], bool]
    loader: str | None
    advice: str = ""


def infer_loader(path: Path) -> Inference:
    """The loader for the model at `path`, and why.

    Raises `ModelNotFoundError` (no such path), `BrokenModelError` (no model in it, bad JSON) or
    `UnsupportedModelError` (a format that no loader runs; the message names the nearest one).
    """
    files = ModelFiles.read(path)
    for rule in RULES:
        if not rule.matches(files):
            continue
        if rule.loader is None:
            raise UnsupportedModelError(f"{path.name}: {rule.sign}; {rule.advice}")
        return Inference(rule.loader, rule.sign)
    if files.quantization:
        method = files.quantization_method[:50] or "without a quant_method"
        raise UnsupportedModelError(
            f"{path.name}: its quantization ({method}) is unknown here; "
            f"the nearest is {VLLM} (--loader {VLLM})"
        )
    raise BrokenModelError(_why_no_model(files))


# ----------------------------------------------------------------------------------- predicates


def _quantized_by(*methods: str) -> Callable[[ModelFiles], bool]:
    return lambda files: files.quantization_method in methods


def _has(pattern: str) -> Callable[[ModelFiles], bool]:
    return lambda files: files.has(pattern)


def _only(pattern: str) -> Callable[[ModelFiles], bool]:
    """Has such files, and no weights in a format that Transformers reads."""
    return lambda files: files.has(pattern) and not files.has(r".*\.(safetensors|bin)")


def _named(pattern: str) -> Callable[[ModelFiles], bool]:
    """The folder's name says so, and there are weights that it can speak of."""
    expression = re.compile(pattern)
    return lambda files: (
        bool(expression.search(files.name))
        and (files.has(WEIGHTS_PATTERN) or "model" in files.folders)
    )


def _word(word: str) -> Callable[[ModelFiles], bool]:
    """The word stands alone in the name: "Llama-AWQ-4bit", not "Llama-awquila"."""
    return _named(rf"(^|[-_. ]){word}($|[-_. ])")


def _configured(key: str) -> Callable[[ModelFiles], bool]:
    return lambda files: key in files.config and not files.quantization_method


def _quantized_with(key: str) -> Callable[[ModelFiles], bool]:
    """An older tool's description: it names no method, but has this key."""
    return lambda files: key in files.quantization and not files.quantization_method


def _is_adapter(files: ModelFiles) -> bool:
    return "adapter_config.json" in files.names and "config.json" not in files.names


def _is_neuron_layout(files: ModelFiles) -> bool:
    return (
        {"model", "neuron_artifacts"} <= files.folders
        or {"checkpoint", "compiled"} <= files.folders
        or "neuron" in files.config
        or "neuron_config.json" in files.names
        or files.has(r".*\.neff|model\.neuron")
        or files.folder_has("neuron_artifacts", r".*\.neff")
    )


def _is_transformers_folder(files: ModelFiles) -> bool:
    return "config.json" in files.names and not files.quantization


# ------------------------------------------------------------------------------------ the table

_METHODS_TO_LOADER: dict[str, str] = {
    "awq": AWQ,
    "gptq": GPTQ,
    "bitsandbytes": TRANSFORMERS,
    "torchao": TRANSFORMERS,
    "fp8": VLLM,
    "fbgemm-fp8": VLLM,
    "compressed-tensors": VLLM,
    "modelopt": VLLM,
    "mxfp4": VLLM,
    "auto-round": VLLM,
}

_METHODS_REFUSED: dict[str, str] = {
    "exl2": f"ExLlamaV2 is not shipped; the nearest is {GPTQ} with a GPTQ checkpoint of the model",
    "exl3": f"ExLlamaV3 is not shipped; the nearest is {LLAMA_CPP} with a GGUF of the model",
    "hqq": f"HQQ is not shipped; the nearest is {AWQ} with an AWQ checkpoint of the model",
    "quanto": f"the nearest is {TRANSFORMERS} with the unquantized model",
    "eetq": f"the nearest is {TRANSFORMERS} with the unquantized model",
    "aqlm": f"the nearest is {LLAMA_CPP} with a low-bit GGUF of the model",
    "bitnet": f"the nearest is {LLAMA_CPP} with a GGUF of the model",
}

RULES: tuple[Rule, ...] = (
    Rule(
        "it is a LoRA adapter (adapter_config.json)",
        _is_adapter,
        None,
        "load its base model, and give it the adapter with --lora",
    ),
    Rule(
        "it is an image pipeline (model_index.json)",
        _has(r"model_index\.json"),
        None,
        "no loader here makes images",
    ),
    *(
        Rule(f"its quantization is {method}", _quantized_by(method), loader)
        for method, loader in _METHODS_TO_LOADER.items()
    ),
    *(
        Rule(f"its quantization is {method}", _quantized_by(method), None, advice)
        for method, advice in _METHODS_REFUSED.items()
    ),
    Rule(
        "config.json has quip_params",
        _configured("quip_params"),
        None,
        f"QuIP# is not shipped; the nearest is {LLAMA_CPP} with a low-bit GGUF of the model",
    ),
    Rule(
        "config.json has MLX quantization",
        _configured("quantization"),
        None,
        f"MLX runs on Apple silicon only; the nearest is {AWQ} with an AWQ checkpoint of the model",
    ),
    Rule("its quant_config.json is AutoAWQ's (w_bit)", _quantized_with("w_bit"), AWQ),
    Rule("its quantize_config.json is AutoGPTQ's (bits)", _quantized_with("bits"), GPTQ),
    Rule("it is or holds GGUF", _has(GGUF_PATTERN), LLAMA_CPP),
    Rule("it has Neuron's layout or compiled artifacts", _is_neuron_layout, NEURON),
    Rule(
        "it holds TensorRT engines",
        _has(r"rank\d+\.engine|.*\.plan"),
        None,
        f"TensorRT-LLM is not shipped; the nearest is {VLLM} with the original checkpoint",
    ),
    Rule(
        "it is in GGML, the format before GGUF",
        _has(r"(.*[._-])?ggml(v\d)?([._-].*)?\.bin"),
        None,
        f"the nearest is {LLAMA_CPP} with a GGUF of the model",
    ),
    Rule(
        "it is in RWKV's own format",
        _has(r"rwkv.*\.pth"),
        None,
        f"the nearest is {TRANSFORMERS} with the model's Hugging Face checkpoint",
    ),
    Rule(
        "it is in the vendor's original format (params.json without config.json)",
        lambda files: "params.json" in files.names and "config.json" not in files.names,
        None,
        f"the nearest is {TRANSFORMERS} with the model's Hugging Face checkpoint",
    ),
    Rule(
        "it holds only ONNX, OpenVINO, TensorFlow or Flax weights",
        _only(r".*\.onnx|openvino_model.*\.xml|tf_model.*\.h5|flax_model.*\.msgpack"),
        None,
        f"the nearest is {TRANSFORMERS} with safetensors of the model",
    ),
    Rule("it has sentence-transformers' modules.json", _has(r"modules\.json"), EMBEDDINGS),
    Rule("its name ends in -neuron", _named(r"-neuron$"), NEURON),
    Rule("its name says awq", _word("awq"), AWQ),
    Rule("its name says gptq", _word("gptq"), GPTQ),
    *(
        Rule(f"its name says {word}", _word(word), None, _METHODS_REFUSED[word])
        for word in ("exl2", "exl3", "hqq")
    ),
    Rule("it has a config.json and no quantization", _is_transformers_folder, TRANSFORMERS),
)


def _why_no_model(files: ModelFiles) -> str:
    """For the user whose path leads to something that is no model."""
    path = files.path
    if files.is_file:
        if files.has(WEIGHTS_PATTERN):
            return f"{path} is a file of weights: name the folder that holds it"
        return f"{path} is not a model file; a single file can be a .gguf"
    if "snapshots" in files.folders and "refs" in files.folders:
        return f"{path} is a Hugging Face cache entry: name the folder below its 'snapshots'"
    if files.has(r".*mmproj.*\.gguf"):
        return f"{path} holds only the mmproj part of a multi-modal GGUF: the model is missing"
    if files.has(WEIGHTS_PATTERN):
        return f"{path} holds weights but no config.json: copy it from the model's source"
    if files.folders:
        inside = ", ".join(sorted(files.folders)[:5])
        return f"{path} holds no model itself; name a folder in it ({inside}, ...)"
    return f"{path} holds no model: neither a config.json nor a .gguf"
