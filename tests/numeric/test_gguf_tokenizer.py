"""The tokenizer taken out of a GGUF file gives the ids that llama.cpp's own gives.

And those of the tokenizer.json that the file was made of, where there was one.
"""

from __future__ import annotations

import json
import random
import unicodedata
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import gguf
import pytest
import tokenizers

from tests.helpers.gguf_models import add_byte_level_tokenizer
from tests.helpers.gguf_vocabularies import add_sentencepiece_tokenizer, write_vocabulary
from tgwui_k8s.demo.tiny_tokenizer import write_tokenizer
from tgwui_k8s.errors import BrokenModelError, UnsupportedModelError
from tgwui_k8s.storage.gguf_metadata import read_metadata
from tgwui_k8s.storage.gguf_splits import SPLITS
from tgwui_k8s.storage.gguf_tokenizer import (
    GGUFTokenizer,
    convert_tokenizer,
    read_gguf_tokenizer,
)

if TYPE_CHECKING:
    from tgwui_k8s.runtime.llama_cpp.model import LlamaModel

ALPHABETS = (
    "abcXYZ 019.,'\n",
    "The quick  brown\tfox's 12345 jumps\r\nover we'LL you'Re ...!? <$+=>",
    "äöüßéèñÅΔλЖщ你好，世界。日本語カタカナ한국어",
    "é́ñ़̃ि \u00a0\u2003\u200b😀👩\u200d🚀🇩🇪①½²٣४",
    "<s></s><|user|>\n<|assistant|> <pad>",
)
TEXTS = (
    "",
    " ",
    "  leading and trailing  ",
    "\n\n\nThree.\n\n Two \n",
    "I'll don't WE'VE he's",
    "<s>Hi</s> there<|user|> x<|assistant|>",
    "x = {'a': [1, 22, 333, 4444]}  # comment\n\tif x >= 10: pass",
)


def texts(count: int, seed: int) -> Iterator[str]:
    """The same texts every time: written ones, and random ones of every alphabet."""
    yield from TEXTS
    source = random.Random(seed)
    for _ in range(count):
        alphabet = source.choice(ALPHABETS)
        yield "".join(source.choice(alphabet) for _ in range(source.randint(1, 40)))


def ours(path: Path) -> tokenizers.Tokenizer:
    """The converted tokenizer."""
    converted = convert_tokenizer(dict(read_metadata(path)), path)
    return tokenizers.Tokenizer.from_buffer(converted.json)


def theirs(path: Path) -> LlamaModel:
    """llama.cpp with the file's vocabulary alone."""
    pytest.importorskip("llama_cpp", reason="needs llama-cpp-python")
    from tgwui_k8s.runtime.llama_cpp.model import LlamaModel
    from tgwui_k8s.runtime.llama_cpp.options import LlamaCppOptions

    return LlamaModel([path], LlamaCppOptions(), use_gpu=False, vocab_only=True)


def byte_level_file(folder: Path, split: str) -> Path:
    write_tokenizer(folder)
    return write_vocabulary(
        folder / f"{split}.gguf", lambda writer: add_byte_level_tokenizer(writer, folder, split)
    )


@pytest.mark.parametrize("split", sorted(SPLITS))
def test_byte_level_ids_are_llama_cpps(split: str, tmp_path: Path) -> None:
    """Every way of splitting words that is converted cuts as llama.cpp does, special tokens too.

    Some models' tokenizers compose characters first; llama.cpp leaves that to its caller.
    """
    path = byte_level_file(tmp_path, split)
    tokenizer, reference = ours(path), theirs(path)
    differing = []
    for text in texts(150, seed=len(split)):
        composed = unicodedata.normalize("NFC", text) if SPLITS[split].nfc else text
        if tokenizer.encode(text).ids != reference.tokenize(composed):
            differing.append(text)

    assert differing == []


@pytest.mark.parametrize("adds_space", [True, False])
def test_sentencepiece_ids_are_llama_cpps(adds_space: bool, tmp_path: Path) -> None:
    """Scores become merges, unknown characters bytes, and a space goes in front where it should."""
    path = write_vocabulary(
        tmp_path / "spm.gguf",
        lambda writer: add_sentencepiece_tokenizer(writer, adds_space=adds_space),
    )
    tokenizer, reference = ours(path), theirs(path)
    differing = [
        text
        for text in texts(300, seed=7)
        if tokenizer.encode(text).ids != reference.tokenize(text)
    ]

    assert differing == []


def test_ids_are_those_of_the_original(tmp_path: Path) -> None:
    """Into GGUF and out again: the tokenizer.json that the file was made of encodes the same."""
    path = byte_level_file(tmp_path, "gpt-2")
    original = tokenizers.Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
    converted = ours(path)

    for text in texts(200, seed=3):
        ids = original.encode(text).ids
        assert converted.encode(text).ids == ids
        assert converted.decode(ids) == original.decode(ids)


def test_names_of_special_tokens_come_along(tmp_path: Path) -> None:
    """Chat templates find their bos_token and eos_token."""
    path = byte_level_file(tmp_path, "llama-bpe")
    converted = convert_tokenizer(dict(read_metadata(path)), path)

    assert converted.special_tokens == {
        "bos_token": "<s>",
        "eos_token": "</s>",
        "pad_token": "<pad>",
    }


def test_other_kinds_are_refused_by_name(tmp_path: Path) -> None:
    """What cannot be converted is named, with the way out."""

    def add_unigram(writer: gguf.GGUFWriter) -> None:
        writer.add_tokenizer_model("t5")
        writer.add_token_list(["a"])

    unigram = write_vocabulary(tmp_path / "t5.gguf", add_unigram)
    odd = byte_level_file(tmp_path, "kimi-k2")

    for path, words in ((unigram, "kind 't5'"), (odd, "'kimi-k2' splitting")):
        with pytest.raises(UnsupportedModelError, match=words) as caught:
            convert_tokenizer(dict(read_metadata(path)), path)
        assert "tokenizer.json" in str(caught.value)


def test_tokenizer_beside_the_file_serves_where_its_own_cannot(tmp_path: Path) -> None:
    """A way of splitting that is unknown here needs the original tokenizer.json; no other does."""
    odd = byte_level_file(tmp_path, "kimi-k2")
    known = byte_level_file(tmp_path, "gpt-2")
    own = read_gguf_tokenizer(known)
    beside = tmp_path / "tokenizer.json"
    beside.write_bytes(beside.read_bytes() + b" ")

    assert read_gguf_tokenizer(known) == own
    assert read_gguf_tokenizer(odd) == GGUFTokenizer(beside.read_bytes(), {})
    beside.unlink()
    with pytest.raises(UnsupportedModelError, match=r"put the tokenizer\.json"):
        read_gguf_tokenizer(odd)


@pytest.mark.parametrize("missing", ["tokenizer.ggml.model", "tokenizer.ggml.tokens"])
def test_incomplete_tokenizer_is_named(tmp_path: Path, missing: str) -> None:
    """A file without the keys is broken, and the error names it."""
    path = byte_level_file(tmp_path, "gpt-2")
    metadata = dict(read_metadata(path))
    del metadata[missing]

    with pytest.raises(BrokenModelError, match=r"gpt-2\.gguf: its tokenizer is incomplete"):
        convert_tokenizer(metadata, path)


def test_end_of_text_is_added_where_the_file_says_so(tmp_path: Path) -> None:
    """`add_bos_token` and `add_eos_token` win over the kind's habit."""
    path = byte_level_file(tmp_path, "gpt-2")
    metadata = dict(read_metadata(path))
    metadata |= {"tokenizer.ggml.add_bos_token": False, "tokenizer.ggml.add_eos_token": True}
    tokenizer = json.loads(convert_tokenizer(metadata, path).json)

    assert tokenizer["post_processor"]["single"] == [
        {"Sequence": {"id": "A", "type_id": 0}},
        {"SpecialToken": {"id": "</s>", "type_id": 0}},
    ]
