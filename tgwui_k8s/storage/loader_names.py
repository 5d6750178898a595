"""Names of loaders: ours, the spellings we accept, and text-generation-webui's that we answer for.

Which of our loaders this installation has is the registry's business, not this table's.
"""

from __future__ import annotations

from tgwui_k8s.errors import LoaderUnavailableError

TRANSFORMERS = "Transformers"
AWQ = "AutoAWQ"
GPTQ = "AutoGPTQ"
LLAMA_CPP = "llama.cpp"
NEURON = "Neuron"
VLLM = "vLLM"
EMBEDDINGS = "Embeddings"
FAKE = "fake"
NATIVE = "Native"

LOADER_NAMES = (TRANSFORMERS, NATIVE, AWQ, GPTQ, LLAMA_CPP, NEURON, VLLM, EMBEDDINGS, FAKE)
"""Every loader this project knows."""

FASTER = {TRANSFORMERS: NATIVE, AWQ: NATIVE, GPTQ: NATIVE}
"""Where a loader was inferred, the one that is tried before it: it does less, but faster."""

_SPELLINGS = {
    "hf": TRANSFORMERS,
    "huggingface": TRANSFORMERS,
    "awq": AWQ,
    "gptq": GPTQ,
    "gguf": LLAMA_CPP,
    "llamacpphf": LLAMA_CPP,
    "transformersneuronx": NEURON,
}
"""Further spellings, as `_plain` leaves them, of loaders that do the same work."""

_GPTQ_ADVICE = f"{GPTQ} runs GPTQ checkpoints; EXL2 ones need another quantization of the model"

_NOT_SHIPPED = {
    "exllama": _GPTQ_ADVICE,
    "exllamahf": _GPTQ_ADVICE,
    "exllamav2": _GPTQ_ADVICE,
    "exllamav2hf": _GPTQ_ADVICE,
    "exllamav3": f"use a GGUF of the model with {LLAMA_CPP}",
    "exllamav3hf": f"use a GGUF of the model with {LLAMA_CPP}",
    "gptqforllama": f"{GPTQ} runs the same checkpoints",
    "ctransformers": f"use a GGUF of the model with {LLAMA_CPP}",
    "quip": f"use an AWQ checkpoint with {AWQ} or a GGUF with {LLAMA_CPP}",
    "hqq": f"use an AWQ checkpoint with {AWQ}, or {TRANSFORMERS} with the unquantized model",
    "rwkv": f"{TRANSFORMERS} runs RWKV checkpoints that carry a config.json",
    "tensorrtllm": f"{VLLM} is the fastest here on NVIDIA GPUs",
}
"""text-generation-webui's loaders that are not here, and what to do instead."""


def canonical_loader_name(name: str) -> str:
    """Our name for what the user wrote: case and punctuation do not matter.

    A name this project does not know (another package may ship that loader) comes back as it is.
    Raises `LoaderUnavailableError` for a loader of text-generation-webui that is not shipped.
    """
    plain = _plain(name)
    if advice := _NOT_SHIPPED.get(plain):
        raise LoaderUnavailableError(f"loader '{name}' is not shipped; {advice}")
    ours = {_plain(loader): loader for loader in LOADER_NAMES}
    return ours.get(plain) or _SPELLINGS.get(plain) or name


def _plain(name: str) -> str:
    return "".join(character for character in name.lower() if character.isalnum())
