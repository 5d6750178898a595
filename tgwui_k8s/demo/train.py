"""Trains the demo model: `python -m tgwui_k8s.demo.train [--out DIR]`.

A Llama of 4.5 million parameters, on text made from the templates in `corpus/`. The seed is
fixed: the same machine and library versions give the same weights, others equally good ones.
The weights in `model/` took 1100 steps, to a loss of 0.20: 17 minutes of processor time on one
core (34 minutes by the clock, on a machine that was busy with other things).
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path

import torch
from torch.nn import functional
from transformers import GenerationConfig, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from tgwui_k8s.demo import model_path
from tgwui_k8s.demo.documents import DocumentMaker
from tgwui_k8s.demo.packing import RowPacker
from tgwui_k8s.demo.train_tokenizer import train_tokenizer

SEED = 2024
VOCAB_SIZE = 3072
CONTEXT = 2048
TOKENS_PER_STEP = 4096
SHORT_ROW = 512
LONG_ROWS_EVERY = 8
"""One step in so many has rows as long as the context, so that far positions work."""
PEAK_RATE = 3e-3
WARM_UP_STEPS = 40


def main() -> None:
    """Train the tokenizer and the model, and write the folder."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=model_path(), help="folder to write")
    parser.add_argument("--steps", type=int, default=1100, help="training steps")
    parser.add_argument("--threads", type=int, default=1, help="CPU threads")
    arguments = parser.parse_args()
    torch.manual_seed(SEED)
    torch.set_num_threads(arguments.threads)
    tokenizer = train_tokenizer(
        arguments.out,
        DocumentMaker(SEED),
        num_documents=6000,
        vocab_size=VOCAB_SIZE,
        context=CONTEXT,
    )
    model = build_model(tokenizer)
    train(model, RowPacker(tokenizer, DocumentMaker(SEED + 1)), num_steps=arguments.steps)
    save(model, arguments.out)


def build_model(tokenizer: PreTrainedTokenizerFast) -> LlamaForCausalLM:
    """A model with random weights, in float32."""
    end_of_text, end_of_turn = tokenizer.convert_tokens_to_ids(["<|endoftext|>", "<|im_end|>"])
    config = LlamaConfig(
        vocab_size=VOCAB_SIZE,
        hidden_size=256,
        intermediate_size=704,
        num_hidden_layers=5,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=CONTEXT,
        tie_word_embeddings=True,
        bos_token_id=end_of_text,
        eos_token_id=end_of_turn,
        pad_token_id=end_of_text,
    )
    model = LlamaForCausalLM(config)
    model.generation_config = GenerationConfig(
        bos_token_id=end_of_text, eos_token_id=[end_of_turn, end_of_text], pad_token_id=end_of_text
    )
    return model


def train(model: LlamaForCausalLM, packer: RowPacker, *, num_steps: int) -> None:
    """Train in place: matrices by Muon, embedding and norms by AdamW, both on one schedule."""
    inner = [p for p in model.model.layers.parameters() if p.ndim == 2]
    outer = [model.model.embed_tokens.weight, *(p for p in model.parameters() if p.ndim == 1)]
    optimizers = (
        torch.optim.Muon(inner, lr=PEAK_RATE, adjust_lr_fn="match_rms_adamw"),
        torch.optim.AdamW(outer, lr=PEAK_RATE, betas=(0.9, 0.95), weight_decay=0.0),
    )
    started = time.monotonic()
    smooth_loss = 0.0
    for step in range(num_steps):
        length = CONTEXT if step % LONG_ROWS_EVERY == 0 else SHORT_ROW
        loss = _loss(model, *packer.batch(TOKENS_PER_STEP // length, length))
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for optimizer in optimizers:
            for group in optimizer.param_groups:
                group["lr"] = PEAK_RATE * _rate(step, num_steps)
            optimizer.step()
            optimizer.zero_grad()
        smooth_loss += (loss.item() - smooth_loss) / min(step + 1, 20)
        if step % 20 == 19:
            elapsed = time.monotonic() - started
            print(f"step {step + 1}/{num_steps} loss {smooth_loss:.4f} {elapsed:.0f} s", flush=True)


def _rate(step: int, num_steps: int) -> float:
    """Share of the peak rate: a warm-up, then straight down to nothing."""
    return min((step + 1) / WARM_UP_STEPS, (num_steps - step) / num_steps)


def _loss(model: LlamaForCausalLM, token_ids: torch.Tensor, learned: torch.Tensor) -> torch.Tensor:
    """Mean cross entropy of the learned tokens; both arguments are [rows, length]."""
    targets = learned[:, 1:]
    with torch.autocast("cpu", torch.bfloat16):
        hidden = model.model(token_ids, use_cache=False).last_hidden_state[:, :-1][targets]
        logits = model.lm_head(hidden)
    return functional.cross_entropy(logits.float(), token_ids[:, 1:][targets])


def save(model: LlamaForCausalLM, folder: Path) -> None:
    """Write weights in bfloat16, with config names that older readers know, too."""
    model.to(torch.bfloat16).save_pretrained(folder)
    (folder / "model.safetensors").chmod(0o644)
    path = folder / "config.json"
    config = json.loads(path.read_text(encoding="utf-8"))
    config["torch_dtype"] = config.pop("dtype", "bfloat16")
    config["rope_theta"] = config.pop("rope_parameters", {}).get("rope_theta", 10000.0)
    path.write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
