"""The model's tokenizer for the API process: on the `tokenizers` library, without torch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import tokenizers

from tgwui_k8s.api.detokenizer import Detokenizer, PieceDetokenizer, WindowDetokenizer
from tgwui_k8s.api.special_tokens import SpecialTokens, read_special_tokens
from tgwui_k8s.api.token_pieces import TokenPieces, decoder_steps, is_byte_level, is_concatenative
from tgwui_k8s.errors import BrokenModelError, ContextLengthError, InvalidRequestError
from tgwui_k8s.storage.gguf_tokenizer import read_gguf_tokenizer
from tgwui_k8s.storage.loader_names import LLAMA_CPP
from tgwui_k8s.storage.model_dir import TOKENIZER_FILE, tokenizer_folder

_SLICE_CHARACTERS = 256 * 1024
"""The library needs some 200 bytes for a token: a request of 16 MiB could take gigabytes."""
_CUT_TOKENS = 64


class Tokenizer:
    """Text to token ids and back.

    Safe to use from several threads. Encoding long text is CPU work that releases the GIL: call
    it in a thread. What belongs to a text of its own, such as a `Detokenizer`, is made per text.
    """

    vocab_size: int
    """Number of tokens, added ones included; the model's logits may be wider."""
    bos_token_id: int | None
    eos_token_ids: tuple[int, ...]
    """Of the tokenizer's files; the model's own list is `ModelInfo.eos_token_ids`."""
    special_token_ids: frozenset[int]
    """Ids that `skip_special_tokens` leaves out."""
    special_tokens: dict[str, str]
    """`bos_token`, `eos_token`, ... for the chat template."""

    def __init__(self, backend: tokenizers.Tokenizer, special: SpecialTokens) -> None:
        """Takes over `backend`."""
        # A tokenizer.json may carry the settings of its training: they would cut or pad prompts.
        backend.no_truncation()
        backend.no_padding()
        self._backend = backend
        self._add_bos = special.add_bos or None
        self.special_tokens = dict(special.names)
        self.special_token_ids = _declare_special_tokens(backend, special)
        self.vocab_size = backend.get_vocab_size(with_added_tokens=True)
        self.bos_token_id = self._named_id("bos_token")
        eos_token_id = self._named_id("eos_token")
        self.eos_token_ids = () if eos_token_id is None else (eos_token_id,)
        steps = decoder_steps(backend)
        self._uses_pieces = is_byte_level(steps) or is_concatenative(steps)
        self._pieces = TokenPieces(backend)
        self._pieces_without: dict[frozenset[int], TokenPieces] = {frozenset(): self._pieces}

    @classmethod
    def load(
        cls,
        folder: Path,
        *,
        tokenizer_json: bytes | None = None,
        special_tokens: Mapping[str, str] | None = None,
    ) -> Tokenizer:
        """Read tokenizer.json, or take `tokenizer_json` in its place, and the files beside it.

        `special_tokens` take the place of those files: they came with the weights, as
        `tokenizer_json` did. Raises `BrokenModelError` where one is missing or broken.
        """
        path = folder / TOKENIZER_FILE
        try:
            if tokenizer_json is None:
                tokenizer_json = path.read_bytes()
            backend = tokenizers.Tokenizer.from_buffer(tokenizer_json)
        except OSError as error:
            raise BrokenModelError(f"{path}: {error.strerror}.") from error
        except Exception as error:  # the library knows no narrower one
            raise BrokenModelError(f"{path} is not a tokenizer: {error}") from error
        if special_tokens:
            return cls(backend, SpecialTokens(names=dict(special_tokens)))
        return cls(backend, read_special_tokens(folder))

    @classmethod
    def of_model(cls, model: Path, loader: str) -> Tokenizer | None:
        """The one that a model's files hold; None where its loader has to make one.

        Raises `BrokenModelError`, or `UnsupportedModelError` for a kind in GGUF that is unknown.
        """
        folder = tokenizer_folder(model)
        if loader == LLAMA_CPP:
            own = read_gguf_tokenizer(model)
            return cls.load(folder, tokenizer_json=own.json, special_tokens=own.special_tokens)
        return cls.load(folder) if (folder / TOKENIZER_FILE).is_file() else None

    def encode(
        self,
        text: str,
        *,
        add_special_tokens: bool = True,
        add_bos: bool | None = None,
        max_tokens: int | None = None,
    ) -> list[int]:
        """Token ids of `text`. `add_bos`: None as the tokenizer does, True exactly one, False none.

        A rendered chat is encoded with `add_special_tokens=False`: the template writes its own.
        With `max_tokens`, long text that is certain to have more costs neither time nor memory;
        the ids may still be more. Raises `ContextLengthError` then, and `InvalidRequestError` for
        text that UTF-8 cannot express (lone surrogates).
        """
        _check_unicode(text)
        if max_tokens is not None and len(text) > _SLICE_CHARACTERS:
            self._check_length(text, max_tokens)
        token_ids = self._encode(text, add_special_tokens)
        if add_bos is None and add_special_tokens:
            add_bos = self._add_bos
        return token_ids if add_bos is None else self._with_bos(token_ids, num_bos=int(add_bos))

    def decode(self, token_ids: Sequence[int], *, skip_special_tokens: bool = True) -> str:
        """Text of the ids, the same as a `TextStream` gives; unknown ids have none."""
        detokenizer = self.detokenizer(skip_special_tokens=skip_special_tokens)
        return "".join(map(detokenizer.step, token_ids)) + detokenizer.flush()

    def token_id(self, token: str) -> int | None:
        """The id of a token by its string; None where the vocabulary lacks it."""
        token_id: int | None = self._backend.token_to_id(token)
        return token_id

    def detokenizer(
        self,
        *,
        skip_special_tokens: bool = True,
        visible_token_ids: frozenset[int] = frozenset(),
    ) -> Detokenizer:
        """A fresh one, for one sequence of tokens. `visible_token_ids` are never skipped."""
        skipped = self.special_token_ids if skip_special_tokens else frozenset[int]()
        skipped -= visible_token_ids
        if not self._uses_pieces:
            return WindowDetokenizer(self._backend, skipped)
        if skipped not in self._pieces_without:
            self._pieces_without[skipped] = TokenPieces(self._backend, skipped=skipped)
        return PieceDetokenizer(self._pieces_without[skipped])

    def token_bytes(self, token_id: int) -> bytes:
        """The bytes a token stands for (logprobs' `bytes`), be they part of a character."""
        piece = self._pieces[token_id]
        return piece.encode() if isinstance(piece, str) else piece or b""

    def token_text(self, token_id: int) -> str:
        r"""Printable form (logprobs' `token`): its text, or `bytes:\xe2` if in mid character."""
        data = self.token_bytes(token_id)
        try:
            return data.decode()
        except UnicodeDecodeError:
            return "bytes:" + ascii(data)[2:-1]

    def sequence_breaker_ids(self, breakers: Sequence[str]) -> tuple[int, ...]:
        """For DRY: of each breaker the last token of "a" + breaker; empty ones count for nothing.

        With a letter in front, as text-generation-webui does it: a breaker usually follows one.
        """
        last = (
            self.encode("a" + breaker, add_special_tokens=False)[-1]
            for breaker in breakers
            if breaker
        )
        return tuple(dict.fromkeys(last))

    def _encode(self, text: str, add_special_tokens: bool) -> list[int]:
        # Unlike `encode`, this releases the GIL and leaves out the offsets nobody asks for.
        encodings = self._backend.encode_batch_fast([text], add_special_tokens=add_special_tokens)
        token_ids: list[int] = encodings[0].ids
        return token_ids

    def _check_length(self, text: str, max_tokens: int) -> None:
        """Count tokens slice by slice; raise `ContextLengthError` when there are too many."""
        num_tokens = 0
        for start in range(0, len(text), _SLICE_CHARACTERS):
            slice_ids = self._encode(text[start : start + _SLICE_CHARACTERS], False)
            # A cut adds tokens where it parts a word: never as many as this.
            num_tokens += max(len(slice_ids) - _CUT_TOKENS, 0)
            if num_tokens > max_tokens:
                raise ContextLengthError(
                    f"The text has more than {max_tokens} tokens.",
                    details={"n_prompt_tokens": num_tokens, "n_ctx": max_tokens},
                )

    def _named_id(self, name: str) -> int | None:
        token = self.special_tokens.get(name)
        token_id: int | None = None if token is None else self._backend.token_to_id(token)
        return token_id

    def _with_bos(self, token_ids: list[int], *, num_bos: int) -> list[int]:
        if self.bos_token_id is None:
            return token_ids
        start = 0
        while start < len(token_ids) and token_ids[start] == self.bos_token_id:
            start += 1
        return [self.bos_token_id] * num_bos + token_ids[start:]


def _check_unicode(text: str) -> None:
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise InvalidRequestError(
            "The text is not valid Unicode: it has a surrogate without its other half.",
            code="invalid_unicode",
        ) from error


def _declare_special_tokens(
    backend: tokenizers.Tokenizer, special: SpecialTokens
) -> frozenset[int]:
    """Make the folder's special tokens special in `backend` too; give the ids of all of them.

    As in Transformers, a name alone does not make a token special that tokenizer.json lists as an
    ordinary added token. A token without an id is left out: a new id would lie outside the
    model's vocabulary.
    """
    added = backend.get_added_tokens_decoder()
    special_ids = {token_id for token_id, token in added.items() if token.special}
    named = {*special.names.values(), *special.others} - {token.content for token in added.values()}
    for content in {*named, *special.flagged}:
        token_id = backend.token_to_id(content)
        if token_id is None:
            continue
        special_ids.add(token_id)
        if token_id not in added:
            token = tokenizers.AddedToken(content, special=True, normalized=False)
            backend.add_special_tokens([token])
    return frozenset(special_ids)
