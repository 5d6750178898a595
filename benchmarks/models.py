"""Write the checkpoints that the benchmarks run: random weights, real shapes, a real tokenizer.

    python -m benchmarks.models S M        # into bench-models/
    python -m benchmarks.models --gguf BF16 bench-models/S

S is a 125M and M a 1.1B Llama shape, L an 8B one for GPUs. Weights are seeded; the tokenizer is a
byte-level BPE trained on the Python standard library's sources, which every machine has.
"""

from __future__ import annotations

import argparse
import sysconfig
from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

VOCAB_SIZE = 32000
SHAPES = {
    "S": {
        "hidden_size": 576,
        "num_hidden_layers": 30,
        "num_attention_heads": 9,
        "num_key_value_heads": 3,
        "intermediate_size": 1536,
        "tie_word_embeddings": True,
    },
    "M": {
        "hidden_size": 2048,
        "num_hidden_layers": 22,
        "num_attention_heads": 32,
        "num_key_value_heads": 4,
        "intermediate_size": 5632,
    },
    "L": {
        "hidden_size": 4096,
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "intermediate_size": 14336,
    },
}
CHAT_TEMPLATE = (
    "{% for m in messages %}<|{{ m.role }}|>\n{{ m.content }}</s>\n{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>\n{% endif %}"
)


def train_tokenizer() -> PreTrainedTokenizerFast:
    """A byte-level BPE of exactly VOCAB_SIZE entries."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    sources = sorted(Path(sysconfig.get_path("stdlib")).glob("**/*.py"))
    texts = (
        path.read_text(encoding="utf-8", errors="ignore")
        for path in sources
        if "site-packages" not in path.parts and "test" not in path.parts
    )
    trainer = trainers.BpeTrainer(
        vocab_size=VOCAB_SIZE,
        special_tokens=["<unk>", "<s>", "</s>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", unk_token="<unk>"
    )
    fast.chat_template = CHAT_TEMPLATE
    return fast


def write_model(name: str, folder: Path, tokenizer: PreTrainedTokenizerFast) -> None:
    """Write one checkpoint in bfloat16; weights are drawn layer by layer to spare memory."""
    config = LlamaConfig(
        vocab_size=VOCAB_SIZE,
        max_position_embeddings=32768 if name == "S" else 8192,
        bos_token_id=1,
        eos_token_id=2,
        **SHAPES[name],
    )
    torch.manual_seed(0)
    torch.set_default_dtype(torch.bfloat16)
    model = LlamaForCausalLM(config)
    with torch.no_grad():
        # Wider than the library's initialisation, so that logits are as spread as a trained
        # model's (standard deviation near 2) and a logit gap means something.
        model.get_output_embeddings().weight.mul_(4.0)
    model.save_pretrained(folder, max_shard_size="2GB")
    tokenizer.save_pretrained(folder)


def write_gguf(kind: str, folder: Path) -> None:
    """Write the checkpoint in `folder` as GGUF, into a folder of its own below."""
    from tests.helpers.gguf_models import make_gguf

    (folder / "gguf").mkdir(exist_ok=True)
    part = make_gguf(folder, folder / "gguf" / f"{kind}.gguf.part", kind=kind)
    part.rename(folder / "gguf" / f"{kind}.gguf")


def main() -> None:
    """Write what is asked for and not there yet."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("names", nargs="*", default=["S", "M"], metavar="S|M|L|FOLDER")
    parser.add_argument("--out", type=Path, default=Path("bench-models"))
    parser.add_argument("--gguf", metavar="KIND", help="write folders as GGUF: F32, BF16, Q8_0")
    arguments = parser.parse_args()
    if arguments.gguf:
        for folder in arguments.names:
            write_gguf(arguments.gguf, Path(folder))
        return
    tokenizer = None
    for name in arguments.names:
        folder = arguments.out / name
        if (folder / "tokenizer.json").exists():
            continue
        tokenizer = tokenizer or train_tokenizer()
        write_model(name, folder, tokenizer)
        print(f"wrote {folder}")


if __name__ == "__main__":
    main()
