"""Text streams: exact text at every split, minimal hold-back, exact resume at every cut."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.helpers.tokenizers_zoo import BACKENDS, make_backend, make_tokenizer
from tgwui_k8s.api.stop_strings import StopStrings
from tgwui_k8s.api.text_stream import TextPiece, TextStream

NAMES = tuple(BACKENDS)
UNICODE_NAMES = ("byte-level", "llama", "gemma", "unigram")
"""Tokenizers that can write every character."""

CHARACTERS = "abeot END.,\n▁Gß日本😀👩‍é"
TEXTS = st.text(CHARACTERS, max_size=40)
STOPS = st.lists(st.text("abeot END.\n日😀\ufffd", min_size=1, max_size=4), max_size=3)


@st.composite
def token_ids(draw: st.DrawFn, name: str, max_size: int = 30) -> list[int]:
    """Ids that a model could generate: text, or anything at all (with ids nobody knows)."""
    if draw(st.booleans()):
        return make_tokenizer(name).encode(draw(TEXTS), add_special_tokens=False)
    vocab_size = make_tokenizer(name).vocab_size
    return draw(st.lists(st.integers(0, vocab_size + 2), max_size=max_size))


@dataclass
class Case:
    """One generation and how it is cut into chunks."""

    name: str
    prompt: list[int]
    completion: list[int]
    cuts: list[int]
    skip_special_tokens: bool

    def stream(self, **options: object) -> TextStream:
        return TextStream(
            make_tokenizer(self.name),
            self.prompt,
            skip_special_tokens=self.skip_special_tokens,
            **options,  # type: ignore[arg-type]
        )

    def chunks(self, start: int = 0) -> list[list[int]]:
        """The completion from token `start` on, in the chunks it is fed in."""
        edges = [start, *(cut for cut in self.cuts if cut > start), len(self.completion)]
        return [self.completion[begin:end] for begin, end in pairwise(edges) if begin < end]


@st.composite
def cases(draw: st.DrawFn, names: tuple[str, ...] = NAMES) -> Case:
    """Any tokenizer, prompt, completion and division into chunks."""
    name = draw(st.sampled_from(names))
    completion = draw(token_ids(name))
    cuts = draw(st.lists(st.integers(0, len(completion)), max_size=8))
    prompt = draw(token_ids(name, max_size=6))
    return Case(name, prompt, completion, sorted(cuts), draw(st.booleans()))


def feed_all(stream: TextStream, chunks: list[list[int]]) -> list[TextPiece]:
    """Every piece, the final one included."""
    return [*(stream.feed(chunk) for chunk in chunks), stream.feed((), final=True)]


def text_of(pieces: list[TextPiece]) -> str:
    return "".join(piece.text for piece in pieces)


def ids_of(pieces: list[TextPiece]) -> list[int]:
    return [token_id for piece in pieces for token_id in piece.token_ids]


def text_after(case: Case) -> str:
    """The completion's text from decoding everything at once."""
    tokenizer = make_tokenizer(case.name)
    detokenizer = tokenizer.detokenizer(skip_special_tokens=case.skip_special_tokens)
    before = "".join(map(detokenizer.step, case.prompt))
    whole = tokenizer.decode(
        case.prompt + case.completion, skip_special_tokens=case.skip_special_tokens
    )
    return whole[len(before) :]


@given(cases())
@settings(max_examples=300, deadline=None)
def test_pieces_add_up_to_the_whole_text_and_all_ids(case: Case) -> None:
    """However tokens are divided into chunks, the text and the ids come out whole."""
    pieces = feed_all(case.stream(), case.chunks())

    assert text_of(pieces) == text_after(case)
    assert ids_of(pieces) == case.completion


@given(st.sampled_from(UNICODE_NAMES), TEXTS, TEXTS)
@settings(deadline=None)
def test_valid_text_streams_as_the_library_decodes_it(
    name: str, prompt: str, completion: str
) -> None:
    """Token by token, no replacement character ever shows where later bytes complete one."""
    backend = make_backend(name)
    prompt_ids = backend.encode(prompt, add_special_tokens=False).ids
    completion_ids = backend.encode(completion, add_special_tokens=False).ids
    stream = TextStream(make_tokenizer(name), prompt_ids)
    pieces = feed_all(stream, [[token_id] for token_id in completion_ids])

    expected = backend.decode(prompt_ids + completion_ids)[len(backend.decode(prompt_ids)) :]
    assert text_of(pieces) == expected
    assert "\ufffd" not in text_of(pieces)


@given(cases(), STOPS, st.booleans(), st.integers(0, 5))
@settings(max_examples=300, deadline=None)
def test_text_ends_before_the_first_stop_string(
    case: Case, stop: list[str], include_stop_text: bool, min_tokens: int
) -> None:
    """The text is cut at the first stop string and equal however it is chunked."""
    options = {"stop": stop, "include_stop_text": include_stop_text, "min_tokens": min_tokens}
    pieces = feed_all(case.stream(**options), case.chunks())
    single = feed_all(case.stream(**options), [[token_id] for token_id in case.completion])

    assert text_of(pieces) == text_of(single)
    assert ids_of(pieces) == ids_of(single)
    assert pieces[-1].stop_text == single[-1].stop_text
    stop_text = pieces[-1].stop_text
    raw = text_after(case)
    if stop_text is None:
        assert text_of(pieces) == raw
    elif include_stop_text:
        assert text_of(pieces).endswith(stop_text)
        assert raw.startswith(text_of(pieces))
    else:
        assert raw.startswith(text_of(pieces) + stop_text)
    if min_tokens == 0 and not include_stop_text:
        assert not any(string in text_of(pieces) for string in stop)


@given(cases(), STOPS)
@settings(deadline=None)
def test_nothing_more_than_a_possible_stop_string_is_held_back(case: Case, stop: list[str]) -> None:
    """What stays behind is the longest suffix that begins a stop string, to the character."""
    stream, plain = case.stream(stop=stop), case.stream()
    beginnings = {string[:size] for string in stop for size in range(len(string))} | {""}
    raw = delivered = ""
    for token_id in case.completion:
        raw += plain.feed([token_id]).text
        piece = stream.feed([token_id])
        delivered += piece.text
        if piece.stop_text is not None:
            break
        held = max((text for text in beginnings if raw.endswith(text)), key=len)
        assert delivered == raw[: len(raw) - len(held)]


@given(cases())
@settings(deadline=None)
def test_offsets_say_where_pieces_and_tokens_begin(case: Case) -> None:
    """`text_offset` counts what went before, `token_offsets` rise and lie within the text."""
    pieces = feed_all(case.stream(), case.chunks())
    length = 0
    for piece in pieces:
        assert piece.text_offset == length
        length += len(piece.text)
    offsets = [offset for piece in pieces for offset in piece.token_offsets]

    assert len(offsets) == len(case.completion)
    assert offsets == sorted(offsets)
    assert all(0 <= offset <= length for offset in offsets)


@given(cases(), st.sampled_from(["END", ".\n", "日😀"]), st.booleans())
@settings(deadline=None)
def test_an_id_leaves_with_the_piece_that_completes_its_text(
    case: Case, stop: str, one_by_one: bool
) -> None:
    """Without the last pieces, decoding the ids given out never yields more than the text."""
    stream = case.stream(stop=[stop])
    chunks = [[token_id] for token_id in case.completion] if one_by_one else case.chunks()
    given_ids: list[int] = []
    length = 0
    for chunk in chunks:
        piece = stream.feed(chunk)
        if piece.stop_text is not None:
            break
        given_ids += piece.token_ids
        length += len(piece.text)
        plain = case.stream()
        assert len(plain.feed(given_ids).text) <= length


@given(cases(), STOPS, st.booleans(), st.integers(0, 4), st.data())
@settings(max_examples=1000, deadline=None)
def test_resumed_stream_goes_on_exactly(
    case: Case, stop: list[str], include_stop_text: bool, min_tokens: int, data: st.DataObject
) -> None:
    """Cut after any chunk: a new stream from the ids and the length delivered gives the rest."""
    options = {"stop": stop, "include_stop_text": include_stop_text, "min_tokens": min_tokens}
    uninterrupted = feed_all(case.stream(**options), case.chunks())
    num_delivered = data.draw(st.integers(0, len(uninterrupted) - 1), label="chunks delivered")
    delivered = uninterrupted[:num_delivered]
    delivered_ids, length = ids_of(delivered), len(text_of(delivered))
    resumed = case.stream(**options, resume_token_ids=delivered_ids, resume_text_length=length)
    rest = feed_all(resumed, case.chunks(start=len(delivered_ids)))

    assert text_of(delivered) + text_of(rest) == text_of(uninterrupted)
    assert delivered_ids + ids_of(rest) == ids_of(uninterrupted)
    assert rest[-1].stop_text == uninterrupted[-1].stop_text
    assert rest[0].text_offset == length


@given(cases(), STOPS, st.lists(st.integers(0, 3), max_size=5))
@settings(max_examples=300, deadline=None)
def test_stream_survives_being_resumed_again_and_again(
    case: Case, stop: list[str], lives: list[int]
) -> None:
    """A gateway that loses one engine after the other still delivers the uninterrupted text."""
    ids: list[int] = []
    text = ""
    for num_chunks in lives:
        stream = case.stream(stop=stop, resume_token_ids=ids, resume_text_length=len(text))
        pieces = [stream.feed(chunk) for chunk in case.chunks(start=len(ids))[:num_chunks]]
        ids, text = ids + ids_of(pieces), text + text_of(pieces)
    last = case.stream(stop=stop, resume_token_ids=ids, resume_text_length=len(text))
    pieces = feed_all(last, case.chunks(start=len(ids)))
    uninterrupted = feed_all(case.stream(stop=stop), case.chunks())

    assert text + text_of(pieces) == text_of(uninterrupted)
    assert pieces[-1].stop_text == uninterrupted[-1].stop_text


def test_resume_inside_a_tokens_text_skips_what_was_delivered() -> None:
    """A token whose space went out and whose rest was held is generated again, not repeated."""
    tokenizer = make_tokenizer("no-decoder")
    ids = tokenizer.encode("the END", add_special_tokens=False)
    first = TextStream(tokenizer, ids[:1], stop=["END!"])
    piece = first.feed(ids[1:])

    assert (piece.text, piece.token_ids) == (" ", ())

    resumed = TextStream(tokenizer, ids[:1], stop=["END!"], resume_text_length=1)
    assert resumed.feed(ids[1:], final=True).text == "END"


def test_resume_without_a_length_takes_all_complete_text_as_delivered() -> None:
    """Tokens alone are enough where no chunk ended inside a token."""
    tokenizer = make_tokenizer("byte-level")
    ids = tokenizer.encode("the lazy dog", add_special_tokens=False)
    stream = TextStream(tokenizer, [], resume_token_ids=ids[:2])
    before = tokenizer.decode(ids[:2])

    piece = stream.feed(ids[2:], final=True)

    assert (before + piece.text, piece.text_offset) == ("the lazy dog", len(before))


def test_resume_with_a_stop_string_already_inside_stops_at_once() -> None:
    """The replayed tokens count for stop strings; the first feed says so."""
    tokenizer = make_tokenizer("byte-level")
    ids = tokenizer.encode("the END is near", add_special_tokens=False)
    stream = TextStream(tokenizer, [], stop=["END"], resume_token_ids=ids, resume_text_length=1)

    assert stream.feed(()) == TextPiece("he ", (), (), 1, "END")


def test_stop_token_has_no_text_but_counts() -> None:
    """A stop token's text is left out, its id is given out with the last piece."""
    tokenizer = make_tokenizer("byte-level")
    ids = tokenizer.encode("the dog.", add_special_tokens=False)
    plain, included = (
        TextStream(tokenizer, [], include_stop_text=included) for included in (False, True)
    )

    piece = plain.feed(ids, final=True, stop_token_id=ids[-1])
    assert (piece.text, piece.token_ids, plain.num_tokens) == ("the dog", tuple(ids), len(ids))
    assert included.feed(ids, final=True, stop_token_id=ids[-1]).text == "the dog."


def test_tokens_behind_the_stop_string_are_dropped() -> None:
    """The ids end with the token that completed the stop string; later feeds give nothing."""
    tokenizer = make_tokenizer("gemma")
    ids = tokenizer.encode("ab.ab", add_special_tokens=False)
    stream = TextStream(tokenizer, [], stop=["."])

    piece = stream.feed(ids)
    assert (piece.text, piece.stop_text) == ("ab", ".")
    assert piece.token_ids == tuple(tokenizer.encode("ab.", add_special_tokens=False))
    assert stream.feed(ids, final=True) == TextPiece("", (), (), 2, ".")


def test_unfinished_character_is_held_and_flushed_at_the_end() -> None:
    """Two of an emoji's four bytes wait, with their ids; at the end they are one U+FFFD."""
    tokenizer = make_tokenizer("byte-level")
    ids = tokenizer.encode("x😀", add_special_tokens=False)
    stream = TextStream(tokenizer, [])

    assert stream.feed(ids[:-1]) == TextPiece("x", tuple(ids[:1]), (0,), 0)
    assert stream.feed((), final=True).text == "\ufffd"


@pytest.mark.parametrize("name", ["byte-level", "gemma"])
def test_character_begun_by_the_prompt_is_completed(name: str) -> None:
    """A prompt of token ids may end inside a character: the stream gives that character."""
    tokenizer = make_tokenizer(name)
    ids = tokenizer.encode("a𐍈!", add_special_tokens=False)
    assert len(ids) == 6

    for num_prompt_tokens in range(1, 5):
        stream = TextStream(tokenizer, ids[:num_prompt_tokens])
        assert stream.feed(ids[num_prompt_tokens:], final=True).text == "𐍈!"


@pytest.mark.parametrize("name", ["llama", "unigram", "metaspace"])
def test_first_word_keeps_its_space_only_behind_a_prompt(name: str) -> None:
    """SentencePiece's ▁ is a space after text and nothing at the start, BOS or not."""
    tokenizer = make_tokenizer(name)
    word = tokenizer.encode("the", add_special_tokens=False)
    prompt = tokenizer.encode("dog", add_special_tokens=False)

    assert TextStream(tokenizer, prompt).feed(word, final=True).text == " the"
    assert TextStream(tokenizer, [1]).feed(word, final=True).text == "the"
    assert TextStream(tokenizer, [1], skip_special_tokens=False).feed(word).text == " the"


def test_stop_string_counts_once_min_tokens_are_there() -> None:
    """The token that is the last of `min_tokens` may complete a stop string, none before it."""
    tokenizer = make_tokenizer("gemma")
    ids = tokenizer.encode("...", add_special_tokens=False)
    num_tokens = len(ids)
    assert num_tokens == 3

    for min_tokens, expected in [(0, ""), (1, ""), (2, "."), (3, ".."), (4, "...")]:
        stream = TextStream(tokenizer, [], stop=["."], min_tokens=min_tokens)
        assert text_of(feed_all(stream, [[token_id] for token_id in ids])) == expected


def test_nothing_is_held_where_the_stop_string_is_wanted() -> None:
    """With `include_stop_text` every character leaves at once."""
    tokenizer = make_tokenizer("gemma")
    stream = TextStream(tokenizer, [], stop=["abc"], include_stop_text=True)
    pieces = [stream.feed(tokenizer.encode(letter, add_special_tokens=False)) for letter in "abcd"]

    assert [piece.text for piece in pieces] == ["a", "b", "c", ""]
    assert pieces[-1].stop_text == "abc"


def test_choices_share_one_automaton() -> None:
    """The stop strings of a request are compiled once; each stream keeps its own place in them."""
    tokenizer = make_tokenizer("byte-level")
    stop = StopStrings(["ab"])
    first, second = (TextStream(tokenizer, [], stop=stop) for _ in range(2))
    a, b = (tokenizer.encode(letter, add_special_tokens=False) for letter in "ab")

    assert first.feed(a).text == ""
    assert second.feed(b).text == "b"
    assert first.feed(b).stop_text == "ab"
