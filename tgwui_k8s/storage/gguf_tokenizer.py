"""The tokenizer inside a GGUF file, in the JSON of the `tokenizers` library.

Two kinds are converted: byte-level BPE ("gpt2": Llama 3, Qwen, GPT-2, Mistral's Tekken, ...) and
SentencePiece's BPE ("llama": Llama 2, Mistral, Gemma, ...). Tests hold the ids equal to those of
llama.cpp's own tokenizer. Other kinds are refused by name.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec

from tgwui_k8s.errors import BrokenModelError, UnsupportedModelError
from tgwui_k8s.storage.gguf_files import pick_gguf
from tgwui_k8s.storage.gguf_metadata import read_metadata
from tgwui_k8s.storage.gguf_splits import SPLITS, Split
from tgwui_k8s.storage.model_dir import TOKENIZER_FILE

_PREFIX = "tokenizer.ggml."
_UNKNOWN, _CONTROL, _USER_DEFINED, _BYTE = 2, 3, 4, 6
_ADDED = (_UNKNOWN, _CONTROL, _USER_DEFINED)
_SPACE = "\u2581"
_NAMES = {
    "bos_token": "bos_token_id",
    "eos_token": "eos_token_id",
    "unk_token": "unknown_token_id",
    "sep_token": "seperator_token_id",
    "pad_token": "padding_token_id",
    "mask_token": "mask_token_id",
}
"""What chat templates call a token, and the key that holds its id (the typing error is GGUF's)."""


@dataclass(frozen=True)
class GGUFTokenizer:
    """A tokenizer in the JSON of the `tokenizers` library."""

    json: bytes
    special_tokens: dict[str, str]
    """`bos_token`, `eos_token`, ... to their text; empty where the folder's files say them."""


def read_gguf_tokenizer(model: Path) -> GGUFTokenizer:
    """The tokenizer of a GGUF model, or of a folder with one, by its path.

    The file's own: what lies beside it may be another model's. Only where it cannot be converted
    is a tokenizer.json beside it taken, with the special tokens that its folder names. Raises
    `BrokenModelError` or `UnsupportedModelError`.
    """
    file = pick_gguf(model)
    try:
        return convert_tokenizer(dict(read_metadata(file)), file)
    except UnsupportedModelError:
        beside = file.parent / TOKENIZER_FILE
        if not beside.is_file():
            raise
        return GGUFTokenizer(beside.read_bytes(), {})


def convert_tokenizer(metadata: Mapping[str, Any], path: Path) -> GGUFTokenizer:
    """Convert the tokenizer in a GGUF file's metadata; `path` is for messages.

    Raises `UnsupportedModelError` for a kind that cannot be converted, `BrokenModelError` where
    keys are missing or contradict each other.
    """
    try:
        return _convert(_Vocabulary(metadata), path)
    except (KeyError, IndexError, TypeError, ValueError) as error:
        raise BrokenModelError(f"{path}: its tokenizer is incomplete: {error!r}") from error


class _Vocabulary:
    """The keys below `tokenizer.ggml`, with llama.cpp's defaults."""

    def __init__(self, metadata: Mapping[str, Any]) -> None:
        self.kind: str = metadata[_PREFIX + "model"]
        self.split_name: str = metadata.get(_PREFIX + "pre") or "default"
        texts = metadata[_PREFIX + "tokens"]
        self.tokens = [text or f"[EMPTY_{index}]" for index, text in enumerate(texts)]
        self.types: list[int] = metadata.get(_PREFIX + "token_type") or [1] * len(self.tokens)
        self.scores: list[float] = metadata.get(_PREFIX + "scores") or []
        self.merges: list[str] = metadata.get(_PREFIX + "merges") or []
        self.ids = {text: index for index, text in enumerate(self.tokens)}
        self.strips_right = "phi-3" in str(metadata.get("general.name", "")).lower()
        self._metadata = metadata
        if len(self.ids) != len(self.tokens) or len(self.types) < len(self.tokens):
            raise ValueError("tokens are listed twice, or have no type")

    def flag(self, name: str, default: bool) -> bool:
        return bool(self._metadata.get(_PREFIX + name, default))

    def special_tokens(self) -> dict[str, str]:
        defaults = {"bos_token": 1, "eos_token": 2, "unk_token": 0} if self.kind == "llama" else {}
        found = {}
        for name, key in _NAMES.items():
            token_id = self._metadata.get(_PREFIX + key, defaults.get(name))
            if isinstance(token_id, int) and 0 <= token_id < len(self.tokens):
                found[name] = self.tokens[token_id]
        return found


def _convert(vocabulary: _Vocabulary, path: Path) -> GGUFTokenizer:
    special = vocabulary.special_tokens()
    if vocabulary.kind == "gpt2":
        split = SPLITS.get(vocabulary.split_name)
        if split is None:
            raise _unsupported(path, f"'{vocabulary.split_name}' splitting of words")
        parts, adds_bos = _byte_level(vocabulary, split), split.add_bos
    elif vocabulary.kind == "llama":
        parts, adds_bos = _sentencepiece(vocabulary), True
    else:
        raise _unsupported(path, f"kind '{vocabulary.kind}'")
    begins = ("bos_token",) if vocabulary.flag("add_bos_token", adds_bos) else ()
    ends = ("eos_token",) if vocabulary.flag("add_eos_token", False) else ()
    tokenizer = {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": list(_added_tokens(vocabulary)),
        **parts,
        "post_processor": _template(vocabulary, [special[n] for n in begins], special, ends),
    }
    return GGUFTokenizer(msgspec.json.encode(tokenizer), special)


def _unsupported(path: Path, what: str) -> UnsupportedModelError:
    return UnsupportedModelError(
        f"{path}: its tokenizer's {what[:100]} cannot be converted; put the tokenizer.json of the "
        "original model beside the file"
    )


def _byte_level(vocabulary: _Vocabulary, split: Split) -> dict[str, Any]:
    splits = [
        {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": False}
        for pattern in split.patterns
    ]
    byte_level = {
        "type": "ByteLevel",
        "add_prefix_space": False,
        "trim_offsets": True,
        "use_regex": False,
    }
    # The first character of a merge may be a space itself.
    cuts = ((merge, merge.index(" ", 1)) for merge in vocabulary.merges)
    merges = [(merge[:cut], merge[cut + 1 :]) for merge, cut in cuts]
    return {
        "normalizer": {"type": "NFC"} if split.nfc else None,
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": [*splits, byte_level]},
        "decoder": byte_level,
        "model": _bpe(vocabulary, merges, ignore_merges=split.ignore_merges),
    }


def _sentencepiece(vocabulary: _Vocabulary) -> dict[str, Any]:
    """The text becomes pieces of characters; what has no piece becomes bytes."""
    adds_space = vocabulary.flag("add_space_prefix", True)
    escape = {"type": "Replace", "pattern": {"String": " "}, "content": _SPACE}
    prepend = [{"type": "Prepend", "prepend": _SPACE}] if adds_space else []
    decoders: list[dict[str, Any]] = [
        {"type": "Replace", "pattern": {"String": _SPACE}, "content": " "},
        {"type": "ByteFallback"},
        {"type": "Fuse"},
    ]
    if adds_space:
        decoders.append({"type": "Strip", "content": " ", "start": 1, "stop": 0})
    return {
        "normalizer": {"type": "Sequence", "normalizers": [*prepend, escape]},
        "pre_tokenizer": None,
        "decoder": {"type": "Sequence", "decoders": decoders},
        "model": _bpe(vocabulary, _merges_by_score(vocabulary), byte_fallback=True),
    }


def _merges_by_score(vocabulary: _Vocabulary) -> list[tuple[str, str]]:
    """SentencePiece merges whatever gives the piece with the highest score: as a list of pairs."""
    ids, scores, types = vocabulary.ids, vocabulary.scores, vocabulary.types
    merges = []
    for index, piece in enumerate(vocabulary.tokens):
        if types[index] in (_UNKNOWN, _CONTROL, _BYTE):
            continue
        pairs = ((piece[:cut], piece[cut:]) for cut in range(1, len(piece)))
        whole = [(ids[left], ids[right]) for left, right in pairs if left in ids and right in ids]
        merges += [(-scores[index], *pair) for pair in sorted(whole)]
    merges.sort(key=lambda merge: merge[0])
    return [(vocabulary.tokens[left], vocabulary.tokens[right]) for _, left, right in merges]


def _bpe(
    vocabulary: _Vocabulary,
    merges: Iterable[tuple[str, str]],
    *,
    ignore_merges: bool = False,
    byte_fallback: bool = False,
) -> dict[str, Any]:
    ids = vocabulary.ids
    known = [
        pair for pair in merges if pair[0] in ids and pair[1] in ids and pair[0] + pair[1] in ids
    ]
    unknown = vocabulary.special_tokens().get("unk_token") if byte_fallback else None
    return {
        "type": "BPE",
        "dropout": None,
        "unk_token": unknown,
        "continuing_subword_prefix": None,
        "end_of_word_suffix": None,
        "fuse_unk": byte_fallback,
        "byte_fallback": byte_fallback,
        "ignore_merges": ignore_merges,
        "vocab": ids,
        "merges": known,
    }


def _added_tokens(vocabulary: _Vocabulary) -> Iterable[dict[str, Any]]:
    """Tokens that are found in the text before it is split."""
    for index, kind in enumerate(vocabulary.types[: len(vocabulary.tokens)]):
        if kind in _ADDED:
            content = vocabulary.tokens[index]
            yield {
                "id": index,
                "content": content,
                "single_word": False,
                "lstrip": False,
                # Phi-3 eats the space after its marks; the first three it has from Llama do not.
                "rstrip": vocabulary.strips_right
                and content not in ("<unk>", "<s>", "<|endoftext|>"),
                "normalized": False,
                "special": kind != _USER_DEFINED,
            }


def _template(
    vocabulary: _Vocabulary,
    begins: list[str],
    special: Mapping[str, str],
    ends: tuple[str, ...],
) -> dict[str, Any] | None:
    """What is put around every text, where the file says so."""
    ending = [special[name] for name in ends]
    if not begins and not ending:
        return None

    def mark(token: str, type_id: int) -> dict[str, Any]:
        return {"SpecialToken": {"id": token, "type_id": type_id}}

    def text(name: str, type_id: int) -> list[dict[str, Any]]:
        sequence = {"Sequence": {"id": name, "type_id": type_id}}
        return [*(mark(t, type_id) for t in begins), sequence, *(mark(t, type_id) for t in ending)]

    return {
        "type": "TemplateProcessing",
        "single": text("A", 0),
        "pair": [*text("A", 0), *text("B", 1)],
        "special_tokens": {
            token: {"id": token, "ids": [vocabulary.ids[token]], "tokens": [token]}
            for token in dict.fromkeys([*begins, *ending])
        },
    }
