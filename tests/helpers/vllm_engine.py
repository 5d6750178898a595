"""vLLM's real engine behind the loader, on the demo model, and an adapter for it."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer
from transformers import AutoModelForCausalLM

from tgwui_k8s import demo
from tgwui_k8s.contract import Backend, GenerationRequest, LoadRequest, TokenDelta
from tgwui_k8s.registry import get_loader
from tgwui_k8s.sampling import SamplingParams

RECIPE = "This is a cake recipe:\n\n1."
NUM_TOKENS = 16
RANK = 8


class Engine:
    """A backend, its event loop, and how to ask it."""

    def __init__(self, request: LoadRequest) -> None:
        self.loop = asyncio.new_event_loop()
        backend = get_loader("vLLM").load(request, lambda progress: None)
        assert isinstance(backend, Backend)
        self.backend = backend
        self.tokenizer = Tokenizer.from_file(str(demo.model_path() / "tokenizer.json"))
        self._count = 0

    def close(self) -> None:
        """Stop vLLM's processes."""
        self.loop.run_until_complete(self.backend.close())
        self.loop.close()

    def request(self, text: str, *, num_choices: int = 1, **fields: Any) -> GenerationRequest:
        self._count += 1
        timeout, adapter = fields.pop("timeout_seconds", None), fields.pop("adapter", "")
        params = {"max_tokens": NUM_TOKENS, "temperature": 0.0, **fields}
        return GenerationRequest(
            request_id=f"r{self._count}",
            prompt_token_ids=tuple(self.tokenizer.encode(text).ids),
            params=SamplingParams(**params),
            num_choices=num_choices,
            timeout_seconds=timeout,
            adapter=adapter,
        )

    async def follow(self, request: GenerationRequest) -> list[TokenDelta]:
        return [delta async for deltas in self.backend.generate(request) for delta in deltas]

    def ask(self, text: str, **fields: Any) -> list[TokenDelta]:
        return self.loop.run_until_complete(self.follow(self.request(text, **fields)))


def request_for(**fields: Any) -> LoadRequest:
    defaults: dict[str, Any] = {
        "dtype": "float32",
        "max_model_len": 256,
        "max_num_seqs": 4,
        "kv_cache_bytes": 64 << 20,
        "options": {"enforce_eager": "true"},
    }
    return LoadRequest(model_path=str(demo.model_path()), loader="vLLM", **{**defaults, **fields})


def tokens(deltas: list[TokenDelta], index: int = 0) -> list[int]:
    return [token for delta in deltas if delta.index == index for token in delta.token_ids]


def reason(deltas: list[TokenDelta], index: int = 0) -> str | None:
    return [delta for delta in deltas if delta.index == index][-1].finish_reason


def make_adapter(folder: Path) -> Path:
    """A random LoRA adapter of the demo model, strong enough to change every answer."""
    sizes = json.loads((demo.model_path() / "config.json").read_text())
    hidden, head = sizes["hidden_size"], sizes["hidden_size"] // sizes["num_attention_heads"]
    outputs = {"q_proj": hidden, "v_proj": sizes["num_key_value_heads"] * head}
    generator = torch.Generator().manual_seed(1)
    tensors = {}
    for layer in range(sizes["num_hidden_layers"]):
        for name, size in outputs.items():
            module = f"base_model.model.model.layers.{layer}.self_attn.{name}"
            for factor, shape in (("lora_A", (RANK, hidden)), ("lora_B", (size, RANK))):
                tensor = 0.25 * torch.randn(shape, generator=generator)
                tensors[f"{module}.{factor}.weight"] = tensor
    save_file(tensors, folder / "adapter_model.safetensors")
    config = {
        **{"peft_type": "LORA", "task_type": "CAUSAL_LM", "bias": "none"},
        **{"r": RANK, "lora_alpha": 2 * RANK, "target_modules": list(outputs)},
    }
    (folder / "adapter_config.json").write_text(json.dumps(config))
    return folder


def greedy_tokens(prompt: list[int], adapter: Path | None = None) -> list[int]:
    """What Transformers says in float32, with the adapter's products added to the weights."""
    model = AutoModelForCausalLM.from_pretrained(demo.model_path(), dtype=torch.float32)
    factors = load_file(adapter / "adapter_model.safetensors") if adapter else {}
    with torch.no_grad():
        for name, down in factors.items():
            if ".lora_A." in name:
                layer = name.removeprefix("base_model.model.").removesuffix(".lora_A.weight")
                up = factors[name.replace(".lora_A.", ".lora_B.")]
                model.get_submodule(layer).weight += 2 * up @ down
        ids = torch.tensor([prompt])
        answer = model.generate(
            input_ids=ids,
            attention_mask=torch.ones_like(ids),
            max_new_tokens=NUM_TOKENS,
            do_sample=False,
        )
    return list(answer[0, len(prompt) :].tolist())
