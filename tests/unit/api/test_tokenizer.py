"""The tokenizer against the library and Transformers: ids, text, special tokens, logprobs."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import tokenizers
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from tokenizers import decoders, models

from tests.helpers.tokenizers_zoo import BACKENDS, NAMED, make_backend, make_tokenizer
from tests.helpers.versions import needs_transformers
from tgwui_k8s.api.special_tokens import SpecialTokens, read_special_tokens
from tgwui_k8s.api.token_pieces import decoder_steps, is_byte_level, is_concatenative
from tgwui_k8s.api.tokenizer import Tokenizer
from tgwui_k8s.errors import BrokenModelError, ContextLengthError, InvalidRequestError

BYTE_FALLBACK_NAMES = ("llama", "gemma", "unigram")
ORDINARY_TOKEN = "it"
"""In every trained vocabulary of the zoo, as a token like any other."""
OTHER_NAMES = tuple(name for name in BACKENDS if name not in BYTE_FALLBACK_NAMES)


def write_folder(
    folder: Path, name: str = "byte-level", config: dict[str, object] | None = None
) -> Path:
    """A model folder with a tokenizer of the zoo."""
    make_backend(name).save(str(folder / "tokenizer.json"))
    config = {"tokenizer_class": "PreTrainedTokenizerFast", **NAMED, **(config or {})}
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    return folder


# ---------------------------------------------------------------------------------- decoding


@given(st.sampled_from(OTHER_NAMES), st.data(), st.booleans())
@settings(max_examples=400, deadline=None)
def test_decode_equals_the_library_for_any_ids(name: str, data: st.DataObject, skip: bool) -> None:
    """Any sequence of ids, sensible or not, unknown ones among them, decodes as the library's."""
    ids = data.draw(st.lists(st.integers(0, make_tokenizer(name).vocab_size + 5), max_size=12))

    expected = make_backend(name).decode(ids, skip_special_tokens=skip)

    assert make_tokenizer(name).decode(ids, skip_special_tokens=skip) == expected


def sentencepiece_text(data: bytes) -> str:
    """SentencePiece's rule for byte tokens: every byte that is no part of a character is U+FFFD."""
    text = ""
    while data:
        for size in range(1, 5):
            try:
                text += data[:size].decode()
            except UnicodeDecodeError:
                continue
            data = data[size:]
            break
        else:
            text, data = text + "\ufffd", data[1:]
    return text


def fused_byte_tokens(tokens: list[str]) -> list[str]:
    """The tokens with each run of byte tokens replaced by its text."""
    fused: list[str] = []
    run = b""
    for token in [*tokens, ""]:
        if token.startswith("<0x"):
            run += bytes.fromhex(token[3:5])
            continue
        fused += [sentencepiece_text(run), token] if run else [token]
        run = b""
    return fused[:-1]


@given(st.sampled_from(BYTE_FALLBACK_NAMES), st.data())
@settings(max_examples=400, deadline=None)
def test_decode_of_byte_tokens_follows_sentencepiece(name: str, data: st.DataObject) -> None:
    """Runs of byte tokens become characters where they can, byte for byte U+FFFD elsewhere."""
    backend = make_backend(name)
    byte_ids = [backend.token_to_id(f"<0x{byte:02X}>") for byte in (0x41, 0x20, 0xC3, 0xA9, 0xE2)]
    ids = data.draw(
        st.lists(
            st.sampled_from(byte_ids) | st.integers(0, backend.get_vocab_size() - 1), max_size=12
        )
    )
    text = fused_byte_tokens([backend.id_to_token(token_id) for token_id in ids])
    assume(not any("▁" in part and len(part) > 1 for part in text if "\ufffd" in part))

    decoded = make_tokenizer(name).decode(ids, skip_special_tokens=False)

    assert decoded == backend.decoder.decode(text)


@pytest.mark.parametrize(
    "data",
    [b"\xed\xa1", b"\xed\xa1a", b"\xe2\x82", b"\xe2\x82a", b"\xe0\x80", b"\xff", b"\xf0\x9f"],
)
def test_broken_bytes_show_as_the_library_shows_them(data: bytes) -> None:
    """As many U+FFFD as the library writes, also for halves of surrogates."""
    backend = make_backend("byte-level")
    tokenizer = make_tokenizer("byte-level")
    id_of_byte = {tokenizer.token_bytes(token_id): token_id for token_id in range(400)}
    ids = [id_of_byte[data[index : index + 1]] for index in range(len(data))]

    assert tokenizer.decode(ids) == backend.decode(ids)


@given(st.sampled_from(BYTE_FALLBACK_NAMES), st.text("ab ▁é日😀\n", max_size=20))
@settings(deadline=None)
def test_decode_of_valid_byte_tokens_equals_the_library(name: str, text: str) -> None:
    """Where byte tokens spell characters, there is nothing to differ about."""
    backend = make_backend(name)
    ids = backend.encode(text).ids

    assert make_tokenizer(name).decode(ids) == backend.decode(ids)


@pytest.mark.parametrize(
    ("decoder", "expected"),
    [
        (decoders.ByteLevel(), True),
        (decoders.Sequence([decoders.ByteLevel(), decoders.Fuse()]), True),
        (decoders.Sequence([decoders.Fuse(), decoders.Strip(" ", 1, 0)]), True),
        (decoders.Sequence([decoders.Fuse(), decoders.Strip(" ", 0, 1)]), False),
        (decoders.Sequence([decoders.Fuse(), decoders.Strip(" ", 2, 0)]), False),
        (decoders.Sequence([decoders.Replace("ab", ""), decoders.Fuse()]), True),
        (decoders.Sequence([decoders.Fuse(), decoders.Replace("ab", "")]), False),
        (decoders.Sequence([decoders.Fuse(), decoders.ByteFallback()]), False),
        (decoders.BPEDecoder(), False),
        (decoders.CTC(), False),
    ],
)
def test_decoders_that_need_their_neighbours_are_recognised(
    decoder: tokenizers.decoders.Decoder, expected: bool
) -> None:
    """Only decoders whose tokens add the same text everywhere go without the library."""
    backend = tokenizers.Tokenizer(models.BPE())
    backend.decoder = decoder
    steps = decoder_steps(backend)

    assert (is_byte_level(steps) or is_concatenative(steps)) is expected


@given(st.text("ab é日😀", max_size=12), st.text("é日", max_size=2))
@settings(deadline=None)
def test_decoder_of_an_unknown_kind_waits_for_whole_characters(text: str, prompt: str) -> None:
    """Where only the library can decode, tokens wait until their bytes are characters."""
    backend = make_backend("gemma")
    backend.decoder = decoders.Sequence(
        [
            decoders.Replace("▁", " "),
            decoders.ByteFallback(),
            decoders.Fuse(),
            decoders.Replace("two characters", ""),
        ]
    )
    tokenizer = Tokenizer(backend, SpecialTokens())
    ids = backend.encode(text).ids
    detokenizer = tokenizer.detokenizer()
    detokenizer.prime(backend.encode(prompt).ids)
    texts = [detokenizer.step(token_id) for token_id in ids]

    assert not any("\ufffd" in piece for piece in texts)
    assert "".join(texts) + detokenizer.flush() == backend.decode(ids)


def test_negative_and_huge_ids_have_no_text() -> None:
    """Ids outside the vocabulary decode to nothing instead of raising."""
    for name in BACKENDS:
        assert make_tokenizer(name).decode([-1, 2**31, 2**40]) == ""


def test_skipped_special_tokens_do_not_part_a_characters_bytes() -> None:
    """As in the library, a special token between two bytes of a character goes without trace."""
    for name in ("byte-level", "gemma"):
        tokenizer = make_tokenizer(name)
        ids = tokenizer.encode("a😀", add_special_tokens=False)

        assert tokenizer.decode([*ids[:-1], 2, ids[-1]]) == "a😀"


# ---------------------------------------------------------------------------------- encoding


@given(st.sampled_from(tuple(BACKENDS)), st.text(max_size=30), st.booleans())
@settings(deadline=None)
def test_encode_equals_the_library(name: str, text: str, add_special_tokens: bool) -> None:
    """The fast path that releases the GIL gives the library's ids."""
    expected = make_backend(name).encode(text, add_special_tokens=add_special_tokens).ids

    encoded = make_tokenizer(name).encode(text, add_special_tokens=add_special_tokens)

    assert encoded == expected


@pytest.mark.parametrize("add_special_tokens", [True, False])
@pytest.mark.parametrize("text", ["fox", "<s>fox", "<s><s>fox", "", "<s>"])
def test_add_bos_gives_exactly_one_or_none(text: str, add_special_tokens: bool) -> None:
    """Whatever the text and the tokenizer put in front, the request's choice counts."""
    tokenizer = make_tokenizer("llama")
    with_bos, without = (
        tokenizer.encode(text, add_special_tokens=add_special_tokens, add_bos=add_bos)
        for add_bos in (True, False)
    )

    assert with_bos == [1, *without]
    assert without[:1] != [1]


def test_add_bos_changes_nothing_where_there_is_no_bos_token() -> None:
    """A tokenizer without BOS cannot add one."""
    tokenizer = Tokenizer(make_backend("byte-level"), SpecialTokens(add_bos=True))

    assert tokenizer.encode("fox", add_bos=True) == tokenizer.encode("fox", add_bos=False)


def test_configured_bos_is_added_where_tokenizer_json_lacks_it(tmp_path: Path) -> None:
    """`add_bos_token: true` in tokenizer_config.json counts, but not for a rendered chat."""
    plain = Tokenizer.load(write_folder(tmp_path, "gemma"))
    assert plain.encode("fox")[:1] != [1]

    tokenizer = Tokenizer.load(write_folder(tmp_path, "gemma", {"add_bos_token": True}))
    assert tokenizer.encode("fox") == [1, *plain.encode("fox")]
    assert tokenizer.encode("fox", add_special_tokens=False) == plain.encode("fox")


def test_lone_surrogate_is_the_clients_mistake() -> None:
    """JSON can carry what UTF-8 cannot: that is a 400, not a crash."""
    with pytest.raises(InvalidRequestError, match="surrogate"):
        make_tokenizer("byte-level").encode("a\ud800b")


def test_text_far_too_long_is_refused_unencoded() -> None:
    """Text with more tokens than fit is refused from its slices; text that fits is encoded."""
    tokenizer = make_tokenizer("byte-level")
    text = "The quick brown fox. " * 30_000
    ids = tokenizer.encode(text)

    assert tokenizer.encode(text, max_tokens=len(ids)) == ids
    with pytest.raises(ContextLengthError, match="more than 100000 tokens") as caught:
        tokenizer.encode(text, max_tokens=100_000)
    assert caught.value.details["n_ctx"] == 100_000


def test_training_leftovers_do_not_cut_or_pad_prompts() -> None:
    """Truncation and padding saved in a tokenizer.json are switched off."""
    backend = make_backend("byte-level")
    backend.enable_truncation(3)
    backend.enable_padding(length=64)
    tokenizer = Tokenizer(backend, SpecialTokens())

    text = "The quick brown fox jumps"
    assert tokenizer.encode(text) == make_tokenizer("byte-level").encode(text)


# ---------------------------------------------------------------------------- special tokens


def test_token_that_the_folder_flags_is_special(tmp_path: Path) -> None:
    """An added token that tokenizer.json lists as ordinary is skipped if the folder says so."""
    token = {"content": "<tool>", "special": True}
    folder = write_folder(
        tmp_path, config={"eos_token": "<tool>", "added_tokens_decoder": {"400": token}}
    )
    tokenizer = Tokenizer.load(folder)
    tool_id = make_backend("byte-level").token_to_id("<tool>")

    assert tokenizer.eos_token_ids == (tool_id,)
    assert tool_id in tokenizer.special_token_ids
    assert tokenizer.decode([tool_id]) == ""


def test_ordinary_vocabulary_that_is_named_becomes_special(tmp_path: Path) -> None:
    """A token from the model's vocabulary is matched as a whole once the folder names it."""
    tokenizer = Tokenizer.load(write_folder(tmp_path, config={"eos_token": ORDINARY_TOKEN}))
    (token_id,) = tokenizer.eos_token_ids

    assert tokenizer.encode(f"x{ORDINARY_TOKEN}y", add_special_tokens=False)[1] == token_id
    assert tokenizer.decode([token_id]) == ""
    assert tokenizer.vocab_size == make_tokenizer("byte-level").vocab_size


def test_named_token_outside_the_vocabulary_gets_no_id(tmp_path: Path) -> None:
    """No id is invented that the model's embedding would not have."""
    folder = write_folder(tmp_path, config={"bos_token": "<begin>", "eos_token": None})
    tokenizer = Tokenizer.load(folder)

    assert (tokenizer.bos_token_id, tokenizer.eos_token_ids) == (None, ())
    assert tokenizer.special_tokens["bos_token"] == "<begin>"
    assert tokenizer.vocab_size == make_tokenizer("byte-level").vocab_size


def test_special_tokens_come_from_every_file_that_has_them(tmp_path: Path) -> None:
    """Strings or objects, named or listed, in the new files or the old one."""
    (tmp_path / "tokenizer_config.json").write_text(
        json.dumps({"bos_token": {"content": "<a>"}, "additional_special_tokens": ["<x>"]})
    )
    (tmp_path / "special_tokens_map.json").write_text(
        json.dumps({"bos_token": "<no>", "eos_token": "<b>", "pad_token": None})
    )
    assert read_special_tokens(tmp_path) == SpecialTokens(
        names={"bos_token": "<a>", "eos_token": "<b>"}, others=("<x>",)
    )

    (tmp_path / "tokenizer_config.json").write_text(
        json.dumps(
            {
                "add_bos_token": True,
                "extra_special_tokens": {"image_token": "<i>"},
                "added_tokens_decoder": {
                    "7": {"content": "<y>", "special": True},
                    "8": {"content": "<z>", "special": False},
                },
            }
        )
    )
    assert read_special_tokens(tmp_path) == SpecialTokens(
        names={"image_token": "<i>"}, flagged=("<y>",), add_bos=True
    )


# ---------------------------------------------------------------------- tokens of logprobs, DRY


def test_token_bytes_add_up_to_the_text() -> None:
    """The tokens of a text, as logprobs show them, are its bytes, split characters or not."""
    text = "The fox 😀 naïve\n"
    for name in ("byte-level", "gemma", "llama", "unigram"):
        tokenizer = make_tokenizer(name)
        ids = tokenizer.encode(text, add_special_tokens=False)
        joined = b"".join(map(tokenizer.token_bytes, ids))

        assert joined.removeprefix(b" ") == text.encode()


def test_token_text_shows_parts_of_characters_as_bytes() -> None:
    """OpenAI's spelling for a token that is not text by itself."""
    tokenizer = make_tokenizer("gemma")
    ids = tokenizer.encode("😀 the", add_special_tokens=False)

    texts = [tokenizer.token_text(token_id) for token_id in ids]
    assert texts[:4] == ["bytes:\\xf0", "bytes:\\x9f", "bytes:\\x98", "bytes:\\x80"]
    assert "".join(texts[4:]) == " the"
    assert tokenizer.token_text(2) == "</s>"
    assert (tokenizer.token_text(10**6), tokenizer.token_bytes(-1)) == ("", b"")


def test_sequence_breakers_are_last_tokens_behind_a_letter() -> None:
    """text-generation-webui's rule: the last token of "a" + breaker, each once."""
    tokenizer = make_tokenizer("llama")
    newline, colon = (
        tokenizer.encode("a" + breaker, add_special_tokens=False)[-1] for breaker in "\n:"
    )

    assert tokenizer.sequence_breaker_ids(["\n", ":", "\n", ""]) == (newline, colon)


# ----------------------------------------------------------------------------------- loading


def test_loads_from_bytes_where_the_folder_has_no_tokenizer_json(tmp_path: Path) -> None:
    """A converted tokenizer comes as bytes; the names still come from the folder."""
    write_folder(tmp_path)
    data = (tmp_path / "tokenizer.json").read_bytes()
    (tmp_path / "tokenizer.json").unlink()
    tokenizer = Tokenizer.load(tmp_path, tokenizer_json=data)

    assert tokenizer.encode("fox") == make_tokenizer("byte-level").encode("fox")
    assert tokenizer.bos_token_id == 1


@pytest.mark.parametrize("content", [None, b"", b"{", b'{"model": {}}', b"[]", b"\xff"])
def test_broken_tokenizer_json_is_named(tmp_path: Path, content: bytes | None) -> None:
    """A missing or broken file gives one error that names it."""
    if content is not None:
        (tmp_path / "tokenizer.json").write_bytes(content)

    with pytest.raises(BrokenModelError, match=r"tokenizer\.json"):
        Tokenizer.load(tmp_path)


@pytest.mark.parametrize("content", [b"{", b"[]", b"\xff", b"[" * 10000])
def test_broken_tokenizer_config_is_named(tmp_path: Path, content: bytes) -> None:
    """The file beside it likewise."""
    write_folder(tmp_path)
    (tmp_path / "tokenizer_config.json").write_bytes(content)

    with pytest.raises(BrokenModelError, match=r"tokenizer_config\.json"):
        Tokenizer.load(tmp_path)


def test_neither_torch_nor_transformers_is_imported(tmp_path: Path) -> None:
    """The API process stays small and quick to start."""
    code = (
        "import sys, tgwui_k8s.api.text_stream, tgwui_k8s.api.chat_template;"
        "print({'torch', 'transformers', 'numpy'} & set(sys.modules))"
    )
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60
    )

    assert result.stdout.strip() == "set()"


@pytest.mark.parametrize(
    "config",
    [
        {"additional_special_tokens": ["<tool>"]},
        {"extra_special_tokens": {"image_token": ORDINARY_TOKEN}},
        {"eos_token": ORDINARY_TOKEN},
        {"added_tokens_decoder": {"0": {"content": "<tool>", "special": True}}},
    ],
)
@needs_transformers("5")
@pytest.mark.parametrize("name", ["byte-level", "llama", "gemma", "unigram", "wordpiece"])
def test_transformers_agrees(tmp_path: Path, name: str, config: dict[str, object]) -> None:
    """Ids, text and special tokens are those of `AutoTokenizer` on the same folder."""
    transformers = pytest.importorskip("transformers")
    folder = write_folder(tmp_path, name, config)
    theirs = transformers.AutoTokenizer.from_pretrained(folder)
    ours = Tokenizer.load(folder)

    for text in ("The <tool> fox with it", "naïve 😀</s> é", " leading", ""):
        ids = theirs(text)["input_ids"]
        assert ours.encode(text) == ids
        for skip in (True, False):
            decoded = theirs.decode(
                ids, skip_special_tokens=skip, clean_up_tokenization_spaces=False
            )
            assert ours.decode(ids, skip_special_tokens=skip) == decoded
    assert ours.special_tokens == theirs.special_tokens_map
