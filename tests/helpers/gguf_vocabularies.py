"""GGUF files with a tokenizer and nothing else, for tests of tokenizers."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import gguf
from tokenizers import Tokenizer, models, normalizers, trainers

TEXT = """
The quick brown fox jumps over the lazy dog while seven wizards brew forty jugs of black quartz.
Once upon a time there was a small engine that wanted to answer every question it was asked.
def forward(self, hidden_states): return self.norm(hidden_states + residual)  # 0123456789
Heute ist ein schöner Tag, größer als gestern; où est la bibliothèque? Привет, мир! 你好，世界。
"""
SPECIAL = ("<unk>", "<s>", "</s>", "<|user|>", "<|assistant|>", "<pad>")


def write_vocabulary(path: Path, add: Callable[[gguf.GGUFWriter], None]) -> Path:
    """A file of a Llama without layers, its tokenizer written by `add`."""
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_context_length(128)
    writer.add_embedding_length(16)
    writer.add_block_count(1)
    writer.add_feed_forward_length(16)
    writer.add_head_count(1)
    writer.add_layer_norm_rms_eps(1e-5)
    add(writer)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.close()
    return path


def add_sentencepiece_tokenizer(writer: gguf.GGUFWriter, *, adds_space: bool) -> None:
    """Pieces with scores as SentencePiece's BPE trainer gives them: the earlier, the higher."""
    trained = Tokenizer(models.BPE())
    trained.normalizer = normalizers.Replace(" ", "\u2581")
    trainer = trainers.BpeTrainer(vocab_size=500, min_frequency=1, show_progress=False)
    trained.train_from_iterator([TEXT], trainer)
    by_id = sorted(trained.get_vocab().items(), key=lambda item: item[1])
    letters = [piece for piece, _ in by_id if len(piece) == 1]
    merged = [piece for piece, _ in by_id if len(piece) > 1]
    normal = gguf.TokenType.NORMAL
    tokens = [(text, 0.0, gguf.TokenType.CONTROL) for text in SPECIAL]
    tokens[0] = (SPECIAL[0], 0.0, gguf.TokenType.UNKNOWN)
    tokens += [(f"<0x{byte:02X}>", 0.0, gguf.TokenType.BYTE) for byte in range(256)]
    tokens += [(piece, -float(rank), normal) for rank, piece in enumerate(merged)]
    tokens += [(letter, -float(len(merged) + rank), normal) for rank, letter in enumerate(letters)]
    writer.add_tokenizer_model("llama")
    writer.add_tokenizer_pre("default")
    writer.add_token_list([text for text, _, _ in tokens])
    writer.add_token_scores([score for _, score, _ in tokens])
    writer.add_token_types([kind for _, _, kind in tokens])
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_unk_token_id(0)
    writer.add_add_space_prefix(adds_space)
