"""A model folder with only a SentencePiece file: converted, it works like the original."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from tests.helpers.tokenizers_zoo import CORPUS
from tgwui_k8s.api.text_stream import TextStream
from tgwui_k8s.api.tokenizer import Tokenizer

sentencepiece = pytest.importorskip("sentencepiece")
transformers = pytest.importorskip("transformers")


@pytest.fixture(scope="module", name="processor")
def sentencepiece_processor() -> Any:
    """A tiny BPE model with byte fallback, as Llama 2's."""
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter([text for text in CORPUS if text.isascii()] * 5),
        model_writer=model,
        model_type="bpe",
        vocab_size=360,
        byte_fallback=True,
        normalization_rule_name="identity",
        remove_extra_whitespaces=False,
        minloglevel=2,
    )
    return sentencepiece.SentencePieceProcessor(model_proto=model.getvalue())


@pytest.fixture(scope="module", name="tokenizer")
def converted_tokenizer(processor: Any, tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    """Converted as the Transformers loader does it, loaded as the API process does it."""
    folder: Path = tmp_path_factory.mktemp("sentencepiece")
    (folder / "tokenizer.model").write_bytes(processor.serialized_model_proto())
    config = {"tokenizer_class": "LlamaTokenizer", "bos_token": "<s>", "eos_token": "</s>"}
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    converted = transformers.AutoTokenizer.from_pretrained(folder)
    data = converted.backend_tokenizer.to_str().encode()
    return Tokenizer.load(folder, tokenizer_json=data)


@given(st.text("ab the.\n é日😀", max_size=30))
@settings(deadline=None)
def test_ids_are_those_of_sentencepiece(processor: Any, tokenizer: Tokenizer, text: str) -> None:
    """Text becomes the same tokens, byte tokens for what the vocabulary lacks among them."""
    if text.startswith(" ") or not text:
        text = "x" + text  # Transformers and SentencePiece differ on leading spaces by intention

    assert tokenizer.encode(text, add_special_tokens=False) == processor.encode(text)


@given(st.data())
@settings(max_examples=400, deadline=None)
def test_any_tokens_stream_as_sentencepiece_decodes_them(
    processor: Any, tokenizer: Tokenizer, data: st.DataObject
) -> None:
    """Token by token, valid or broken bytes, the text is what SentencePiece makes of the whole."""
    byte_ids = st.sampled_from([processor.piece_to_id(f"<0x{b:02X}>") for b in b"A \xc3\xa9\xe2"])
    ids = data.draw(st.lists(byte_ids | st.integers(3, processor.vocab_size() - 1), max_size=12))
    # At the very start the `tokenizers` library drops a space even if a byte token spells it.
    assume(ids[:1] != [processor.piece_to_id("<0x20>")])
    stream = TextStream(tokenizer, [tokenizer.bos_token_id or 0])
    text = "".join(stream.feed([token_id]).text for token_id in ids)

    assert text + stream.feed((), final=True).text == processor.decode(ids)
