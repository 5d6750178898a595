"""AWQ and GPTQ checkpoints made of tiny ones, by code that shares nothing with the loaders'.

Written from the formats' descriptions with NumPy and plain loops; every checkpoint has a twin, an
ordinary one whose weights are the dequantized numbers.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from safetensors.numpy import save_file
from safetensors.torch import load_file

from tgwui_k8s.demo.tiny import make_checkpoint

Array = npt.NDArray[Any]

AWQ_ORDER = (0, 2, 4, 6, 1, 3, 5, 7)
"""Which of eight outputs stands at the i-th four bits of AWQ's int32."""


@dataclass(frozen=True)
class Rounded:
    """A weight [inputs, outputs] as codes; `groups` says which group each input belongs to."""

    codes: Array
    scales: Array
    zeros: Array
    groups: Array

    @property
    def weight(self) -> Array:
        """The reference formula, in float16: what AutoAWQ and AutoGPTQ compute."""
        steps = self.codes.astype(np.int32) - self.zeros.astype(np.int32)[self.groups]
        return steps.astype(np.float16) * self.scales[self.groups]


def round_weight(weight: Array, *, bits: int, group_size: int, groups: Array | None) -> Rounded:
    """Codes for a weight [outputs, inputs]; `groups` other than in order is act-order."""
    inputs = weight.astype(np.float32).T
    group_size = inputs.shape[0] if group_size == -1 else group_size
    if groups is None:
        groups = np.arange(inputs.shape[0]) // group_size
    num_groups = int(groups.max()) + 1
    low = np.stack([inputs[groups == g].min(0) for g in range(num_groups)])
    high = np.stack([inputs[groups == g].max(0) for g in range(num_groups)])
    levels = 2**bits - 1
    scales = ((high - low) / levels).astype(np.float16)
    steps = scales.astype(np.float32)
    # The first version of GPTQ's format cannot say 0.
    zeros = np.clip(np.rint(-low / steps), 1, levels)
    codes = np.clip(np.rint(inputs / steps[groups]) + zeros[groups], 0, levels)
    return Rounded(codes.astype(np.uint8), scales, zeros.astype(np.uint8), groups)


def pack_awq(codes: Array) -> Array:
    """[rows, outputs] to int32 [rows, outputs / 8]."""
    words = np.zeros((codes.shape[0], codes.shape[1] // 8), np.uint32)
    for column in range(words.shape[1]):
        for place, output in enumerate(AWQ_ORDER):
            words[:, column] |= codes[:, 8 * column + output].astype(np.uint32) << (4 * place)
    return words.view(np.int32)


def pack_rows(codes: Array, bits: int) -> Array:
    """GPTQ's qweight: [inputs, outputs] to int32 [inputs * bits / 32, outputs]."""
    per_word = 32 // bits
    words = np.zeros((codes.shape[0] // per_word, codes.shape[1]), np.uint32)
    for row in range(codes.shape[0]):
        words[row // per_word] |= codes[row].astype(np.uint32) << (bits * (row % per_word))
    return words.view(np.int32)


def awq_tensors(rounded: Rounded) -> dict[str, Array]:
    """What an AWQ checkpoint holds for a layer."""
    return {
        "qweight": pack_awq(rounded.codes),
        "qzeros": pack_awq(rounded.zeros),
        "scales": rounded.scales,
    }


def gptq_tensors(rounded: Rounded, *, bits: int, zero_offset: int) -> dict[str, Array]:
    """What a GPTQ checkpoint holds for a layer."""
    return {
        "qweight": pack_rows(rounded.codes, bits),
        "qzeros": pack_rows((rounded.zeros - zero_offset).T, bits).T.copy(),
        "scales": rounded.scales,
        "g_idx": rounded.groups.astype(np.int32),
    }


@dataclass(frozen=True)
class Format:
    """A way to write a checkpoint."""

    method: str
    bits: int = 4
    group_size: int = 32
    act_order: bool = False
    version: str = ""
    """"gptq_v2": zero points as they are."""
    old_file: bool = False
    """The description in a file of its own, as older tools wrote it."""
    overrides: dict[str, Any] = field(default_factory=dict)

    @property
    def description(self) -> dict[str, Any]:
        """`quantization_config`, or what stands in the older tool's file."""
        if self.method == "awq" and self.old_file:
            fields = {"w_bit": self.bits, "q_group_size": self.group_size, "zero_point": True}
            return {**fields, "version": "GEMM", **self.overrides}
        fields = {"bits": self.bits, "group_size": self.group_size}
        if self.method == "awq":
            fields |= {"zero_point": True, "version": "gemm", "modules_to_not_convert": None}
        else:
            fields |= {"desc_act": self.act_order, "sym": False}
        if self.version:
            fields["checkpoint_format"] = self.version
        method = {} if self.old_file else {"quant_method": self.method}
        return {**fields, **method, **self.overrides}

    def tensors(self, rounded: Rounded) -> dict[str, Array]:
        """A layer's tensors."""
        if self.method == "awq":
            return awq_tensors(rounded)
        zero_offset = 0 if self.version == "gptq_v2" else 1
        return gptq_tensors(rounded, bits=self.bits, zero_offset=zero_offset)


FORMATS = {
    "AWQ": Format("awq"),
    "AWQ, older file, groups of 64": Format("awq", group_size=64, old_file=True),
    "AWQ, one group": Format("awq", group_size=-1),
    "GPTQ": Format("gptq"),
    "GPTQ, older file": Format("gptq", group_size=64, old_file=True),
    "GPTQ, act-order": Format("gptq", act_order=True),
    "GPTQ, second version": Format("gptq", version="gptq_v2"),
    "GPTQ, act-order, second version": Format("gptq", act_order=True, version="gptq_v2"),
    "GPTQ, 8 bits": Format("gptq", bits=8),
    "GPTQ, 8 bits, act-order": Format("gptq", bits=8, act_order=True),
}


def is_rounded(name: str) -> bool:
    """The layers that such tools quantize: not embeddings, norms and head."""
    return name.endswith("_proj.weight")


def make_quantized(
    folder: Path,
    form: Format,
    *,
    twin: Path | None = None,
    rounds: Callable[[str], bool] = is_rounded,
    **checkpoint: Any,
) -> Path:
    """Write a quantized tiny checkpoint into `folder`, and its dequantized twin; returns it."""
    make_checkpoint(folder, **{"architecture": "llama", **checkpoint})
    return quantize_folder(folder, form, twin=twin, rounds=rounds)


def quantize_folder(
    folder: Path,
    form: Format,
    *,
    twin: Path | None = None,
    rounds: Callable[[str], bool] = is_rounded,
) -> Path:
    """Quantize the checkpoint in `folder` where it lies, into one file; returns it."""
    shards = sorted(folder.glob("model*.safetensors"))
    plain = {
        name: tensor.float().numpy()
        for shard in shards
        for name, tensor in load_file(shard).items()
    }
    quantized: dict[str, Array] = {}
    dequantized = dict(plain)
    generator = np.random.default_rng(0)
    for name, weight in plain.items():
        if not rounds(name):
            quantized[name] = weight
            continue
        groups = None
        if form.act_order:
            groups = generator.permutation(np.arange(weight.shape[1]) // form.group_size)
        rounded = round_weight(weight, bits=form.bits, group_size=form.group_size, groups=groups)
        layer = name.removesuffix(".weight")
        quantized |= {f"{layer}.{part}": t for part, t in form.tensors(rounded).items()}
        if twin is not None:
            dequantized[name] = np.ascontiguousarray(rounded.weight.T.astype(np.float32))
    for file in (*shards, *folder.glob("model.safetensors.index.json")):
        file.unlink()
    if twin is not None:
        shutil.copytree(folder, twin)
        save_file(dequantized, twin / "model.safetensors", metadata={"format": "pt"})
    save_file(quantized, folder / "model.safetensors", metadata={"format": "pt"})
    describe(folder, form)
    return folder


def describe(folder: Path, form: Format) -> None:
    """Write down how the checkpoint is quantized."""
    if form.old_file:
        name = "quant_config.json" if form.method == "awq" else "quantize_config.json"
        (folder / name).write_text(json.dumps(form.description))
        return
    path = folder / "config.json"
    path.write_text(
        json.dumps({**json.loads(path.read_text()), "quantization_config": form.description})
    )
