"""Model folders as they are found in the wild: small files with the right names and contents."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.helpers.gguf_bytes import gguf_bytes

LLAMA = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "max_position_embeddings": 4096,
    "torch_dtype": "float16",
}
SAFETENSORS = {"model.safetensors": b"\0" * 64}
GGUF = gguf_bytes(
    {
        "general.architecture": "llama",
        "general.file_type": 15,
        "llama.context_length": 2048,
    }
)


@dataclass(frozen=True)
class Layout:
    """One model of the zoo and the verdict it deserves: a loader, or words of the error."""

    name: str
    """Its path below the model directory; ends in .gguf for a single file."""
    verdict: str
    files: dict[str, Any] = field(default_factory=dict)
    """Path inside the folder to bytes, text, or an object that is written as JSON."""

    def write(self, model_dir: Path) -> Path:
        """Make it below `model_dir`."""
        path = model_dir / self.name
        if path.suffix == ".gguf":
            path.write_bytes(GGUF)
            return path
        path.mkdir(parents=True)
        for name, content in self.files.items():
            target = path / name
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(_to_bytes(content))
        return path


def quantized(method: str, **more: Any) -> dict[str, Any]:
    """A folder whose config.json names a quantization."""
    config = {**LLAMA, "quantization_config": {"quant_method": method, **more}}
    return {"config.json": config, **SAFETENSORS}


PLAIN = {"config.json": LLAMA, **SAFETENSORS}

SUPPORTED = (
    Layout("Llama-2-7b-hf", "Transformers", PLAIN),
    Layout("all-MiniLM-L6-v2", "Embeddings", {**PLAIN, "modules.json": []}),
    Layout("opt-bin", "Transformers", {"config.json": LLAMA, "pytorch_model.bin": b"\0"}),
    Layout("TheBloke_Llama-2-7B-Chat-AWQ", "AutoAWQ", quantized("awq", bits=4)),
    Layout(
        "old-kind-of-awq-folder",
        "AutoAWQ",
        {**PLAIN, "quant_config.json": {"zero_point": True, "q_group_size": 128, "w_bit": 4}},
    ),
    Layout("hidden-format", "AutoAWQ", quantized("AWQ", bits=4)),
    Layout("Mistral-7B-awq", "AutoAWQ", PLAIN),
    Layout("TheBloke_Llama-2-7B-GPTQ", "AutoGPTQ", quantized("gptq", bits=4)),
    Layout(
        "older-gptq",
        "AutoGPTQ",
        {**PLAIN, "quantize_config.json": {"bits": 4, "group_size": 128, "desc_act": True}},
    ),
    Layout(
        "gptqmodel-wrote-awq",
        "AutoAWQ",
        {**PLAIN, "quantize_config.json": {"quant_method": "awq", "bits": 4}},
    ),
    Layout(
        "unnamed-method",
        "AutoGPTQ",
        {"config.json": {**LLAMA, "quantization_config": {"bits": 4, "sym": True}}, **SAFETENSORS},
    ),
    Layout("Llama-7b-gptq-4bit-128g", "AutoGPTQ", {"config.json": LLAMA, "model.pt": b"\0"}),
    Layout("named-gptq-but-really-awq-GPTQ", "AutoAWQ", quantized("awq")),
    Layout("bnb-4bit", "Transformers", quantized("bitsandbytes", load_in_4bit=True)),
    Layout(
        "bnb-of-old",
        "Transformers",
        {"config.json": {**LLAMA, "quantization_config": {"load_in_8bit": True}}, **SAFETENSORS},
    ),
    Layout("torchao-int8", "Transformers", quantized("torchao")),
    Layout("Llama-3-8B-FP8", "vLLM", quantized("fp8")),
    Layout("compressed", "vLLM", quantized("compressed-tensors")),
    Layout("fbgemm", "vLLM", quantized("fbgemm_fp8")),
    Layout("gpt-oss", "vLLM", quantized("mxfp4")),
    Layout("nvidia-fp4", "vLLM", quantized("modelopt")),
    Layout("intel", "vLLM", quantized("auto-round")),
    Layout(
        "multimodal-awq",
        "AutoAWQ",
        {
            "config.json": {"text_config": {"quantization_config": {"quant_method": "awq"}}},
            **SAFETENSORS,
        },
    ),
    Layout("single.Q4_K_M.gguf", "llama.cpp"),
    Layout("Llama-GGUF", "llama.cpp", {"llama.Q4_K_M.gguf": GGUF}),
    Layout("TheBloke-GGUF-with-config", "llama.cpp", {"config.json": LLAMA, "a.gguf": GGUF}),
    Layout("gguf-in-a-folder-named-awq", "llama.cpp", {"a.gguf": GGUF}),
    Layout(
        "split-gguf",
        "llama.cpp",
        {"m-00001-of-00002.gguf": GGUF, "m-00002-of-00002.gguf": GGUF, "mmproj-m.gguf": GGUF},
    ),
    Layout(
        "gguf-with-its-eye-and-matrix",
        "llama.cpp",
        {"m.Q4_K_M.gguf": GGUF, "m-mmproj-f16.gguf": GGUF, "m.imatrix.gguf": GGUF},
    ),
    Layout("safetensors-beside-an-eye", "Transformers", {**PLAIN, "m-mmproj-f16.gguf": GGUF}),
    Layout(
        "Llama-2-7b-neuron",
        "Neuron",
        {
            "model/config.json": LLAMA,
            "model/model.safetensors": b"\0",
            "tokenizer/tokenizer.json": {},
            "neuron_artifacts/0123456789abcdef0123.neff": b"\0",
        },
    ),
    Layout("compiled-llama", "Neuron", {**PLAIN, "neuron_artifacts/a.neff": b"\0"}),
    Layout(
        "neuron-layout-not-compiled-yet",
        "Neuron",
        {"model/config.json": LLAMA, "neuron_artifacts/.keep": b""},
    ),
    Layout(
        "optimum",
        "Neuron",
        {**PLAIN, "checkpoint/config.json": LLAMA, "compiled/a.neff": b"\0"},
    ),
    Layout("by-name-neuron", "Neuron", PLAIN),
    # Traps: names that only seem to say something.
    Layout("Neuron-7B-chat", "Transformers", PLAIN),
    Layout("awquila-7b", "Transformers", PLAIN),
    Layout("empty-artifacts", "Transformers", {**PLAIN, "neuron_artifacts/.keep": b""}),
    Layout("hf-with-onnx-folder", "Transformers", {**PLAIN, "onnx/model.onnx": b"\0"}),
    Layout("hf-beside-flax", "Transformers", {**PLAIN, "flax_model.msgpack": b"\0"}),
)

REFUSED = (
    Layout("Llama2-7B-exl2", "ExLlamaV2 is not shipped", PLAIN),
    Layout("exl2-by-content", "AutoGPTQ", quantized("exl2", bits=4.65)),
    Layout("exl3-by-content", "llama.cpp", quantized("exl3")),
    Layout("Llama-2-7b-4bit-hqq", "HQQ is not shipped", PLAIN),
    Layout("hqq-by-content", "AutoAWQ", quantized("hqq")),
    Layout("Llama-3-8B-exl3", "ExLlamaV3 is not shipped", PLAIN),
    Layout("aqlm", "low-bit GGUF", quantized("aqlm")),
    Layout("bitnet-b1.58", "GGUF", quantized("bitnet")),
    Layout("quanto-int8", "unquantized model", quantized("quanto")),
    Layout("eetq-int8", "unquantized model", quantized("eetq")),
    Layout("quip", "QuIP# is not shipped", {"config.json": {**LLAMA, "quip_params": {}}}),
    Layout("mlx", "Apple", {"config.json": {**LLAMA, "quantization": {"bits": 4}}, **SAFETENSORS}),
    Layout("tomorrow", "unknown here; the nearest is vLLM", quantized("qubit-5d")),
    Layout(
        "a-lora", "LoRA adapter", {"adapter_config.json": {}, "adapter_model.safetensors": b"\0"}
    ),
    Layout("diffusers", "image pipeline", {"model_index.json": {}}),
    Layout("llama-ggml", "GGML", {"llama-7b.ggmlv3.q4_0.bin": b"\0"}),
    Layout("rwkv", "RWKV's own format", {"RWKV-4-Raven-7B.pth": b"\0"}),
    Layout("meta", "original format", {"params.json": {}, "consolidated.00.pth": b"\0"}),
    Layout("trt", "TensorRT-LLM is not shipped", {"rank0.engine": b"\0", "config.json": LLAMA}),
    Layout("onnx-only", "ONNX", {"config.json": LLAMA, "model.onnx": b"\0"}),
)

BROKEN = (
    Layout("empty-awq", "holds no model", {}),
    Layout("notes", "holds no model", {"README.md": b"# nothing"}),
    Layout("weights-alone", "no config.json", SAFETENSORS),
    Layout("bad-json", "not valid JSON", {"config.json": b"{", **SAFETENSORS}),
    Layout("huge-json", "too large", {"config.json": b" " * (16 * 1024**2 + 1)}),
    Layout("json-list", "no JSON object", {"config.json": b"[]", **SAFETENSORS}),
    Layout("binary-json", "not valid JSON", {"config.json": b"\xff\xfe\x00", **SAFETENSORS}),
    Layout("deep-json", "not valid JSON", {"config.json": b"[" * 100_000, **SAFETENSORS}),
    Layout(
        "lfs-pointer",
        "git lfs pull",
        {"config.json": b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n"},
    ),
    Layout("eye-without-model", "mmproj", {"mmproj-model-f16.gguf": GGUF}),
    Layout(
        "models--meta-llama--Llama-2",
        "name the folder below its 'snapshots'",
        {"refs/main": b"abc", "snapshots/abc/README.md": b""},
    ),
)

ZOO = SUPPORTED + REFUSED + BROKEN


def _to_bytes(content: Any) -> bytes:
    if isinstance(content, bytes):
        return content
    return json.dumps(content).encode()
