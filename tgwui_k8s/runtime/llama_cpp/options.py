"""What an operator can say to llama.cpp, under the names of text-generation-webui and llama.cpp.

They come as `LoadRequest.options`, from the flags of the section `llama_cpp` and from
`--loader-option`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields
from typing import Any

from tgwui_k8s.errors import UnsupportedModelError

CACHE_TYPES: dict[str, tuple[int, float]] = {
    "f32": (0, 4.0),
    "f16": (1, 2.0),
    "bf16": (30, 2.0),
    "q8_0": (8, 34 / 32),
    "q5_1": (7, 24 / 32),
    "q5_0": (6, 22 / 32),
    "q4_1": (3, 20 / 32),
    "q4_0": (2, 18 / 32),
    "iq4_nl": (20, 18 / 32),
}
"""Name to ggml's number of the type, and bytes per element."""

FLASH_ATTENTION = {"auto": -1, "off": 0, "on": 1}
SPLIT_MODES = {"none": 0, "layer": 1, "row": 2, "tensor": 3}
ROPE_SCALINGS = {"none": 0, "linear": 1, "yarn": 2}

_SWITCH = {
    **dict.fromkeys(("1", "true", "yes", "on"), True),
    **dict.fromkeys(("0", "false", "no", "off"), False),
}


def _number(least: int) -> Callable[[str], int]:
    def read(text: str) -> int:
        try:
            number = int(text)
        except ValueError:
            number = least - 1
        if not least <= number < 2**31:
            raise ValueError(f"not a whole number from {least} on")
        return number

    return read


def _positive(text: str) -> float:
    try:
        number = float(text)
    except ValueError:
        number = 0.0
    if not 0 < number < float("inf"):
        raise ValueError("not a positive number")
    return number


def _shares(text: str) -> tuple[float, ...]:
    return tuple(_positive(part) for part in text.split(","))


def _one_of(choices: Mapping[str, Any]) -> Callable[[str], str]:
    def read(text: str) -> str:
        if text.lower() not in choices:
            raise ValueError(f"not one of {', '.join(choices)}")
        return text.lower()

    return read


def _switch(text: str) -> bool:
    if text.lower() not in _SWITCH:
        raise ValueError("not true or false")
    return _SWITCH[text.lower()]


def _option(read: Callable[[str], Any], help: str, default: Any = None) -> Any:
    return field(default=default, metadata={"read": read, "help": help})


_TYPES = ", ".join(CACHE_TYPES)


@dataclass(frozen=True, kw_only=True)
class LlamaCppOptions:
    """Every option; None leaves it to llama.cpp or to the model."""

    n_gpu_layers: int | None = _option(
        _number(-1), "Layers on the GPU; default: all where the build can, -1 says so too."
    )
    split_mode: str | None = _option(
        _one_of(SPLIT_MODES), "How several GPUs share the model: none, layer, row, tensor."
    )
    tensor_split: tuple[float, ...] | None = _option(
        _shares, "Each GPU's share of the model, such as 3,1."
    )
    main_gpu: int | None = _option(_number(0), "The GPU of split mode 'none'.")
    batch_size: int | None = _option(_number(1), "Most tokens of one call; default: of a step.")
    ubatch_size: int = _option(_number(1), "Most tokens computed at once.", 512)
    threads_batch: int | None = _option(_number(1), "Threads for prompts; default: as for tokens.")
    flash_attn: str = _option(_one_of(FLASH_ATTENTION), "auto, on or off.", "auto")
    cache_type: str = _option(_one_of(CACHE_TYPES), f"Type of the KV cache: {_TYPES}.", "f16")
    cache_type_k: str | None = _option(_one_of(CACHE_TYPES), "The same, for keys alone.")
    cache_type_v: str | None = _option(_one_of(CACHE_TYPES), "The same, for values alone.")
    no_kv_offload: bool = _option(_switch, "Keep the KV cache in host memory.", False)
    no_mmap: bool = _option(_switch, "Read the weights instead of mapping the file.", False)
    mlock: bool = _option(_switch, "Keep the weights from being paged out.", False)
    numa: bool = _option(_switch, "Spread threads over NUMA nodes.", False)
    rope_freq_base: float | None = _option(_positive, "RoPE's base; default: the model's.")
    rope_freq_scale: float | None = _option(_positive, "RoPE's scale; default: the model's.")
    compress_pos_emb: float | None = _option(_positive, "RoPE's scale, as its inverse.")
    rope_scaling: str | None = _option(_one_of(ROPE_SCALINGS), "none, linear or yarn.")
    yarn_orig_ctx: int | None = _option(_number(1), "YaRN's original context length.")

    @property
    def cache_types(self) -> tuple[str, str]:
        """Of keys and values."""
        return self.cache_type_k or self.cache_type, self.cache_type_v or self.cache_type

    @property
    def freq_scale(self) -> float | None:
        """RoPE's frequency scale by either name."""
        if self.compress_pos_emb is not None:
            return 1.0 / self.compress_pos_emb
        return self.rope_freq_scale


OPTIONS: dict[str, str] = {
    option.name: option.metadata["help"] for option in fields(LlamaCppOptions)
}
"""Name to help, as `Loader.options` lists them."""


def parse_options(given: Mapping[str, str]) -> LlamaCppOptions:
    """Options by name, dashes or underscores.

    Raises `UnsupportedModelError` for an unknown name, a wrong value or a contradiction.
    """
    readers = {option.name: option.metadata["read"] for option in fields(LlamaCppOptions)}
    values: dict[str, Any] = {}
    for key, text in given.items():
        name = key.replace("-", "_")
        if name not in readers:
            raise UnsupportedModelError(
                f"loader 'llama.cpp' has no option '{key[:100]}'; it has: {', '.join(readers)}"
            )
        try:
            values[name] = readers[name](text)
        except ValueError as error:
            raise UnsupportedModelError(f"{key}={text[:100]} is {error}") from None
    if values.get("rope_freq_scale") and values.get("compress_pos_emb"):
        raise UnsupportedModelError("give rope_freq_scale or compress_pos_emb, not both")
    options = LlamaCppOptions(**values)
    is_quantized = CACHE_TYPES[options.cache_types[1]][1] < CACHE_TYPES["f16"][1]
    if is_quantized and options.flash_attn == "off":
        raise UnsupportedModelError("a quantized cache_type_v needs flash_attn=on")
    return options
