"""Tiny tokenizers of every kind models come with, made in milliseconds, the same every time.

(Some of the library's trainers number tokens differently in each process; those kinds are put
together from a vocabulary instead of trained.)

`BACKENDS` names them; `make_backend(name)` gives a fresh one of the `tokenizers` library,
`make_tokenizer(name)` ours on top of it. All have `SPECIAL_TOKENS` and `ORDINARY_ADDED`.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import cache
from typing import Any

import tokenizers
from tokenizers import decoders, models, normalizers, pre_tokenizers, processors, trainers

from tgwui_k8s.api.special_tokens import SpecialTokens
from tgwui_k8s.api.tokenizer import Tokenizer

CORPUS = [
    "The quick brown fox jumps over the lazy dog, and the END is near.",
    "Mix the flour with two eggs; stop. Then stir it in the bowl: stop stirring!",
    "Grüße aus Köln, naïve café, Привет мир, 日本語のテキスト, emoji 😀 and 👩‍👩‍👧.",
    "def main():\n    return {'a': 1}\n\n\nThe end.\n",
] * 3

SPECIAL_TOKENS = ["<unk>", "<s>", "</s>", "<pad>"]
NAMED = {"bos_token": "<s>", "eos_token": "</s>", "pad_token": "<pad>", "unk_token": "<unk>"}
ORDINARY_ADDED = ["<tool>", "<｜end▁of▁thought｜>", "é "]
"""Added tokens that are not special; characters in and outside byte-level BPE's alphabet."""
_BYTE_TOKENS = [f"<0x{byte:02X}>" for byte in range(256)]


def make_backend(name: str) -> tokenizers.Tokenizer:
    """A fresh tokenizer of the library, which the caller may change."""
    return tokenizers.Tokenizer.from_str(_json(name))


@cache
def make_tokenizer(name: str) -> Tokenizer:
    """Our tokenizer over a backend of that name."""
    return Tokenizer(make_backend(name), SpecialTokens(names=dict(NAMED)))


@cache
def _json(name: str) -> str:
    backend = BACKENDS[name]()
    backend.add_tokens(
        [tokenizers.AddedToken(token, special=False, normalized=False) for token in ORDINARY_ADDED]
    )
    return str(backend.to_str())


def _byte_level() -> tokenizers.Tokenizer:
    """As GPT-2, Llama 3 and Qwen: every token is bytes."""
    backend = tokenizers.Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=400,
        special_tokens=SPECIAL_TOKENS,
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    backend.train_from_iterator(CORPUS, trainer)
    _put_bos_first(backend)
    return backend


def _llama() -> tokenizers.Tokenizer:
    """As Llama 2 and Mistral: BPE over ▁ with byte fallback, one space dropped at the start."""
    backend = _gemma()
    backend.normalizer = normalizers.Sequence(
        [normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]
    )
    backend.decoder = decoders.Sequence(
        [
            decoders.Replace("▁", " "),
            decoders.ByteFallback(),
            decoders.Fuse(),
            decoders.Strip(" ", 1, 0),
        ]
    )
    _put_bos_first(backend)
    return backend


def _gemma() -> tokenizers.Tokenizer:
    """As Gemma: BPE over ▁ with byte fallback, spaces kept."""
    backend = tokenizers.Tokenizer(models.BPE(byte_fallback=True, unk_token="<unk>"))
    backend.normalizer = normalizers.Replace(" ", "▁")
    backend.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    )
    trainer = trainers.BpeTrainer(
        vocab_size=260, special_tokens=SPECIAL_TOKENS, show_progress=False
    )
    backend.train_from_iterator([text for text in CORPUS if text.isascii()], trainer)

    def add_bytes(model: dict[str, Any]) -> None:
        for token in _BYTE_TOKENS:
            model["vocab"].setdefault(token, len(model["vocab"]))

    return _edit_model(backend, add_bytes)


def _unigram() -> tokenizers.Tokenizer:
    """As T5 and its kin, with byte fallback."""
    backend = _metaspace(byte_fallback=True)
    backend.decoder = decoders.Sequence([decoders.ByteFallback(), decoders.Metaspace()])
    return backend


def _metaspace(*, byte_fallback: bool = False) -> tokenizers.Tokenizer:
    """Unigram with the plain Metaspace decoder, unknown characters to <unk>."""
    tokens = [
        token
        for token, _ in sorted(_gemma().get_vocab().items(), key=lambda item: item[1])
        if byte_fallback or token not in _BYTE_TOKENS
    ]
    scored = [(token, -float(rank)) for rank, token in enumerate(tokens)]
    backend = tokenizers.Tokenizer(
        models.Unigram(scored, unk_id=tokens.index("<unk>"), byte_fallback=byte_fallback)
    )
    backend.add_special_tokens(SPECIAL_TOKENS)
    backend.pre_tokenizer = pre_tokenizers.Metaspace()
    backend.decoder = decoders.Metaspace()
    return backend


def _wordpiece() -> tokenizers.Tokenizer:
    """As BERT."""
    letters = _letters()
    tokens = [*SPECIAL_TOKENS, *letters, *(f"##{letter}" for letter in letters), "fox", "it"]
    vocab = {token: index for index, token in enumerate(tokens)}
    backend = tokenizers.Tokenizer(models.WordPiece(vocab, unk_token="<unk>"))
    backend.add_special_tokens(SPECIAL_TOKENS)
    backend.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    backend.decoder = decoders.WordPiece()
    return backend


def _word_suffix() -> tokenizers.Tokenizer:
    """As the first GPT: </w> ends words, which the decoder can read only beside a neighbour."""
    letters = _letters()
    merges = [("o", "x</w>"), ("f", "ox</w>"), ("t", "h"), ("th", "e</w>")]
    tokens = [*SPECIAL_TOKENS, *letters, *(f"{letter}</w>" for letter in letters)]
    tokens += ["".join(pair) for pair in merges]
    backend = tokenizers.Tokenizer(
        models.BPE(
            {token: index for index, token in enumerate(tokens)},
            merges,
            end_of_word_suffix="</w>",
            unk_token="<unk>",
        )
    )
    backend.add_special_tokens(SPECIAL_TOKENS)
    backend.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    backend.decoder = decoders.BPEDecoder()
    return backend


def _no_decoder() -> tokenizers.Tokenizer:
    """Whole words and nothing that puts them together: the library joins them with spaces."""
    backend = tokenizers.Tokenizer(models.WordLevel(unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    trainer = trainers.WordLevelTrainer(
        vocab_size=100, special_tokens=SPECIAL_TOKENS, show_progress=False
    )
    backend.train_from_iterator(CORPUS, trainer)
    return backend


BACKENDS: dict[str, Callable[[], tokenizers.Tokenizer]] = {
    "byte-level": _byte_level,
    "llama": _llama,
    "gemma": _gemma,
    "unigram": _unigram,
    "metaspace": _metaspace,
    "wordpiece": _wordpiece,
    "word-suffix": _word_suffix,
    "no-decoder": _no_decoder,
}


def _letters() -> list[str]:
    return sorted(set("".join(CORPUS)) - set(" \n"))


def _put_bos_first(backend: tokenizers.Tokenizer) -> None:
    bos_token_id = backend.token_to_id("<s>")
    backend.post_processor = processors.TemplateProcessing(
        single="<s> $A", pair="<s> $A <s> $B", special_tokens=[("<s>", bos_token_id)]
    )


def _edit_model(
    backend: tokenizers.Tokenizer, edit: Callable[[dict[str, Any]], None]
) -> tokenizers.Tokenizer:
    data = json.loads(backend.to_str())
    edit(data["model"])
    return tokenizers.Tokenizer.from_str(json.dumps(data))
