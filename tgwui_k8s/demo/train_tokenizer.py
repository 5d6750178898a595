"""The demo model's tokenizer: byte-level BPE with single digits, as SmolLM has it."""

from __future__ import annotations

import json
from pathlib import Path

from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from tgwui_k8s.demo.conversation import Conversation
from tgwui_k8s.demo.documents import DocumentMaker

CHAT_TEMPLATE = Path(__file__).resolve().parent / "chat_template.jinja"
SPECIAL_TOKENS = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
TOOL_CALL_TOKENS = ("<tool_call>", "</tool_call>")
"""Tokens of their own, but text: they come out when special tokens are skipped."""


def train_tokenizer(
    folder: Path, documents: DocumentMaker, *, num_documents: int, vocab_size: int, context: int
) -> PreTrainedTokenizerFast:
    """Train on some documents, write tokenizer.json and tokenizer_config.json, and load them."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Digits(individual_digits=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size - len(TOOL_CALL_TOKENS),
        special_tokens=list(SPECIAL_TOKENS),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    texts = (_text_of(documents.next()) for _ in range(num_documents))
    tokenizer.train_from_iterator(texts, trainer)
    tokenizer.add_tokens([AddedToken(token, special=False) for token in TOOL_CALL_TOKENS])
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(folder / "tokenizer.json"))
    _write_config(folder, tokenizer, context)
    return AutoTokenizer.from_pretrained(folder)


def _write_config(folder: Path, tokenizer: Tokenizer, context: int) -> None:
    added = {
        str(token_id): {
            "content": token.content,
            "lstrip": False,
            "normalized": False,
            "rstrip": False,
            "single_word": False,
            "special": token.special,
        }
        for token_id, token in sorted(tokenizer.get_added_tokens_decoder().items())
    }
    config = {
        "add_prefix_space": False,
        "added_tokens_decoder": added,
        "bos_token": None,
        "chat_template": CHAT_TEMPLATE.read_text(encoding="utf-8"),
        "clean_up_tokenization_spaces": False,
        "eos_token": "<|im_end|>",
        "model_max_length": context,
        "pad_token": "<|endoftext|>",
        "tokenizer_class": "PreTrainedTokenizerFast",
        "unk_token": None,
    }
    text = json.dumps(config, indent=2, ensure_ascii=False)
    (folder / "tokenizer_config.json").write_text(text + "\n", encoding="utf-8")


def _text_of(document: str | Conversation) -> str:
    if isinstance(document, str):
        return document
    contents = [str(message["content"]) for message in document.messages]
    return "\n".join(contents + [json.dumps(tool) for tool in document.tools])
