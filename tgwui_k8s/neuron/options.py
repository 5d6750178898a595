"""What an operator can say about a Neuron model, read and checked one by one.

They come as `LoadRequest.options`, from the flags of the section `neuron` and from
`--loader-option`. Nothing here is decided yet: see `parameters`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, fields
from typing import Any

from tgwui_k8s.errors import UnsupportedModelError
from tgwui_k8s.neuron.layout import LIBRARIES

AMP_NAMES: dict[str, str] = {
    **{"f32": "f32", "fp32": "f32", "float": "f32", "float32": "f32"},
    **{"f16": "f16", "fp16": "f16", "half": "f16", "float16": "f16"},
    **{"bf16": "bf16", "bfloat16": "bf16"},
}
"""The library's name for every usual name of a type."""

GQA_NAMES = ("shard-over-heads", "shard-over-batch", "replicated-heads", "all-gather-heads")
LAYOUT_NAMES = ("HSB", "BSH")
MODES = ("auto", "continuous", "sample")

_TRUE = frozenset({"1", "true", "yes", "on"})
_FALSE = frozenset({"0", "false", "no", "off"})


def _number(text: str) -> int:
    if not text.isdecimal() or not 0 < int(text) < 2**31:
        raise ValueError("not a positive whole number")
    return int(text)


def _numbers(text: str) -> tuple[int, ...]:
    numbers = tuple(sorted({_number(part.strip()) for part in text.split(",") if part.strip()}))
    if not numbers:
        raise ValueError("not a list of numbers such as 128,512,2048")
    return numbers


def _switch(text: str) -> bool:
    word = text.strip().lower()
    if word not in _TRUE | _FALSE:
        raise ValueError("not true or false")
    return word in _TRUE


def _amp(text: str) -> str:
    if text.lower() not in AMP_NAMES:
        raise ValueError(f"not one of {', '.join(AMP_NAMES)}")
    return AMP_NAMES[text.lower()]


def _one_of(*choices: str) -> Callable[[str], str]:
    def read(text: str) -> str:
        for choice in choices:
            if choice.lower() == text.lower():
                return choice
        raise ValueError(f"not one of {', '.join(choices)}")

    return read


def _option(read: Callable[[str], Any], help: str, default: Any = None) -> Any:
    return field(default=default, metadata={"read": read, "help": help})


@dataclass(frozen=True, kw_only=True)
class NeuronOptions:
    """Every option; None where the operator left it to us."""

    tp_degree: int | None = _option(_number, "Cores that one model lies on; default: all visible.")
    amp: str | None = _option(_amp, "Type to compute in: f32, f16, bf16, or a dtype's usual name.")
    batch_size: int | None = _option(_number, "Sequences that run at once; compiled in.")
    n_positions: int | None = _option(_number, "Longest prompt plus completion; compiled in.")
    context_buckets: tuple[int, ...] | None = _option(
        _numbers, "Prompt lengths to compile for, such as 128,512,2048; the last is the longest."
    )
    gqa: str | None = _option(
        _one_of(*GQA_NAMES), f"How key-value heads are spread: {', '.join(GQA_NAMES)}."
    )
    attention_layout: str | None = _option(_one_of(*LAYOUT_NAMES), "HSB or BSH.")
    collectives_layout: str | None = _option(_one_of(*LAYOUT_NAMES), "HSB or BSH.")
    fuse_qkv: bool | None = _option(_switch, "Compute queries, keys and values in one product.")
    quantization: str | None = _option(
        _one_of("none", "s8"), "s8 stores the weights of the layers in eight bits."
    )
    mode: str = _option(
        _one_of(*MODES),
        "'continuous' batches and samples here; 'sample' is the library's own loop, one request "
        "at a time; 'auto' takes the first where the model's class can.",
        "auto",
    )
    artifacts: str | None = _option(str, "Folder with the compiled graphs.")
    compile_on_start: bool = _option(
        _switch, "Compile at the start where no artifacts match.", False
    )
    library: str | None = _option(_one_of("auto", *LIBRARIES), f"auto, {' or '.join(LIBRARIES)}.")
    compile_workers: int | None = _option(
        _number, "Graphs to compile at once; each takes several GiB of the host's memory."
    )


OPTIONS: dict[str, str] = {option.name: option.metadata["help"] for option in fields(NeuronOptions)}
"""Name to help, as `Loader.options` lists them."""


def parse_options(given: dict[str, str]) -> NeuronOptions:
    """Options by name. Raises `UnsupportedModelError` for an unknown name or a wrong value."""
    readers = {option.name: option.metadata["read"] for option in fields(NeuronOptions)}
    values: dict[str, Any] = {}
    for name, text in given.items():
        if name not in readers:
            raise UnsupportedModelError(
                f"loader 'Neuron' has no option '{name[:100]}'; it has: {', '.join(readers)}"
            )
        try:
            values[name] = readers[name](text)
        except ValueError as error:
            raise UnsupportedModelError(f"{name}={text[:100]} is {error}") from None
    return NeuronOptions(**values)
