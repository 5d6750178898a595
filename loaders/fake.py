"""A model without weights: deterministic, fast, no torch. For tests, demos and cluster drills.

    tgwui-k8s serve --loader fake --model fake --loader-option tokens_per_second=50

Its KV cache stores the token ids that were computed into it, and the next token is drawn from a
hash of the ids that a query reads back through its block table. So the text depends on nothing
but the sequence's own tokens, and on all of them: a wrong block table, a block handed out twice or
a stale prefix changes it, and a slot that nobody wrote is an error.

Text is bytes: token id = byte, then three special tokens. It speaks lower-case gibberish.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import time
import zlib
from collections.abc import Sequence
from dataclasses import dataclass, field, fields
from typing import Any, ClassVar, NoReturn, get_type_hints

import numpy as np
import numpy.typing as npt

from tgwui_k8s.contract import (
    Batch,
    KVGroup,
    KVLayout,
    LoadProgress,
    LoadRequest,
    ModelInfo,
    ProgressCallback,
    Sampler,
    ScheduledSequence,
)
from tgwui_k8s.errors import IntegrityError, NotEnoughMemoryError, StartupError

NUM_BYTES = 256
SPECIAL_TOKENS = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
EOS_TOKEN_IDS = (256, 258)
VOCAB_SIZE = NUM_BYTES + len(SPECIAL_TOKENS)

CHAT_TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message.role }}\n{{ message.content }}<|im_end|>\n"
    "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)

_ALPHABET = b"eeeeaaaiiioottnnsrhldu    "
"""What a greedy choice can be, and how likely each is."""
_NUM_DISTRIBUTIONS = 1024
_BYTES_PER_TOKEN = 4
_BLOCK_SIZE = 16
_MAX_MODEL_LEN = 4096
_NO_TOKEN = -1


def _option(default: Any, help: str) -> Any:
    return field(default=default, metadata={"help": help})


@dataclass(frozen=True)
class FakeOptions:
    """What `--loader-option KEY=VALUE` can say."""

    tokens_per_second: float = _option(0.0, "Decode speed of each sequence; 0 is unlimited.")
    ttft_seconds: float = _option(0.0, "A step that ends a prompt takes so much longer.")
    prompt_tokens_per_second: float = _option(0.0, "Prefill speed of a step; 0 is unlimited.")
    eos_every: int = _option(0, "Texts end after so many tokens on average; 0 is never.")
    load_seconds: float = _option(0.0, "How long loading takes.")
    load_bytes: int = _option(0, "Bytes of weights that loading pretends to read.")
    fail_load: str = _option("", "Loading fails with this message.")
    error_after_steps: int = _option(0, "Step N raises an exception, which ends the engine.")
    crash_after_steps: int = _option(0, "Step N aborts the process, as broken native code would.")
    hang_after_steps: int = _option(0, "Step N never ends.")


class FakeLoader:
    """contract.Loader that needs neither a model nor a library."""

    name: ClassVar[str] = "fake"
    options: ClassVar[dict[str, str]] = {
        option.name: option.metadata["help"] for option in fields(FakeOptions)
    }

    def load(self, request: LoadRequest, progress: ProgressCallback) -> FakeRunner:
        """Pretend to read weights. Raises `StartupError` for a wrong option, or when told to."""
        options = parse_options(request.options)
        _pretend_to_read(options, progress)
        if options.fail_load:
            raise StartupError(options.fail_load)
        return FakeRunner(request, options)


class FakeRunner:
    """contract.ModelRunner over blocks of token ids."""

    def __init__(self, request: LoadRequest, options: FakeOptions) -> None:
        block_size = request.block_size or _BLOCK_SIZE
        max_model_len = request.max_model_len or _MAX_MODEL_LEN
        if request.kv_cache_bytes is None:
            num_blocks = request.max_num_seqs * math.ceil(max_model_len / block_size)
        else:
            num_blocks = request.kv_cache_bytes // (block_size * _BYTES_PER_TOKEN)
        if num_blocks < 1:
            raise NotEnoughMemoryError("the KV cache is smaller than one block: raise it")
        self.layout = KVLayout(block_size=block_size, groups=(KVGroup(num_blocks=num_blocks),))
        self.sampler: Sampler | None = None
        self.info = ModelInfo(
            loader=FakeLoader.name,
            architecture="Fake",
            dtype="float32",
            device="cpu",
            max_model_len=max_model_len,
            vocab_size=VOCAB_SIZE,
            eos_token_ids=EOS_TOKEN_IDS,
            weight_bytes=options.load_bytes,
            fingerprint=_fingerprint(options),
            tokenizer_json=tokenizer_json(),
            chat_template=CHAT_TEMPLATE,
            details={"note": "a fake model: its text means nothing"},
        )
        self._options = options
        self._slots = np.full((num_blocks, block_size), _NO_TOKEN, dtype=np.int32)
        self._distributions = make_distributions(options.eos_every)
        self._num_steps = 0

    def execute(self, batch: Batch) -> npt.NDArray[np.float32]:
        """Store the batch's tokens, then read back what each wanted query may see."""
        self._num_steps += 1
        self._fail_on_time()
        self._take_time(batch)
        for sequence in batch.sequences:
            self._store(sequence)
        keys = [key for sequence in batch.sequences for key in self._hashes(sequence)]
        rows = np.array(keys, dtype=np.int64) % _NUM_DISTRIBUTIONS
        logits: npt.NDArray[np.float32] = self._distributions[rows]
        return logits

    def warm_up(self) -> None:
        """Nothing is cold."""

    def close(self) -> None:
        """Nothing is held."""

    def _store(self, sequence: ScheduledSequence) -> None:
        positions = np.arange(sequence.start, sequence.start + len(sequence.token_ids))
        logical_blocks, offsets = np.divmod(positions, self.layout.block_size)
        blocks = np.asarray(sequence.block_tables[0])[logical_blocks]
        self._slots[blocks, offsets] = sequence.token_ids

    def _hashes(self, sequence: ScheduledSequence) -> list[int]:
        """For each of the last `num_logits` tokens, a hash of all tokens up to it."""
        if sequence.num_logits == 0:
            return []
        stop = sequence.start + len(sequence.token_ids)
        num_blocks = math.ceil(stop / self.layout.block_size)
        visible = self._slots[sequence.block_tables[0][:num_blocks]].ravel()[:stop]
        if visible.min() == _NO_TOKEN:
            raise IntegrityError("a query reads a KV slot that nobody has written")
        first = stop - sequence.num_logits
        key = zlib.crc32(visible[:first].tobytes())
        hashes = []
        for token in visible[first:]:
            key = zlib.crc32(token.tobytes(), key)
            hashes.append(key)
        return hashes

    def _take_time(self, batch: Batch) -> None:
        options = self._options
        prompts = [sequence for sequence in batch.sequences if _is_prompt(sequence)]
        seconds = 1 / options.tokens_per_second if options.tokens_per_second else 0.0
        if any(sequence.num_logits for sequence in prompts):
            seconds += options.ttft_seconds
        if options.prompt_tokens_per_second:
            num_tokens = sum(len(sequence.token_ids) for sequence in prompts)
            seconds += num_tokens / options.prompt_tokens_per_second
        if seconds:
            time.sleep(seconds)

    def _fail_on_time(self) -> None:
        options = self._options
        if self._num_steps == options.error_after_steps:
            raise RuntimeError("the fake model fails, as asked")
        if self._num_steps == options.crash_after_steps:
            os.abort()
        if self._num_steps == options.hang_after_steps:
            _hang()


def parse_options(given: dict[str, str]) -> FakeOptions:
    """Options by name. Raises `StartupError` for an unknown name or a wrong value."""
    types = get_type_hints(FakeOptions)
    values: dict[str, Any] = {}
    for name, text in given.items():
        if name not in types:
            known = ", ".join(option.name for option in fields(FakeOptions))
            raise StartupError(f"loader 'fake' has no option '{name[:100]}'; it has: {known}")
        try:
            values[name] = types[name](text)
        except ValueError:
            raise StartupError(f"loader 'fake': {name}={text[:100]} is not a number") from None
        if not isinstance(values[name], str) and not 0 <= values[name] < math.inf:
            raise StartupError(f"loader 'fake': {name}={text[:100]} is out of range")
    return FakeOptions(**values)


def make_distributions(eos_every: int) -> npt.NDArray[np.float32]:
    """Logits [distribution, vocab_size]; a sequence's hash picks one.

    The most likely token is a letter, a blank, or (one time in `eos_every`) the end of the text.
    """
    # The legacy generator, because its numbers are the same in every version of NumPy.
    random = np.random.RandomState(0)
    logits = random.normal(size=(_NUM_DISTRIBUTIONS, VOCAB_SIZE)).astype(np.float32)
    logits[:, NUM_BYTES:] = -30.0
    letters = np.frombuffer(_ALPHABET, dtype=np.uint8)
    logits[:, np.unique(letters)] += 4.0
    rows = np.arange(_NUM_DISTRIBUTIONS)
    logits[rows, random.choice(letters, size=_NUM_DISTRIBUTIONS)] += 8.0
    if eos_every:
        ends = random.random_sample(_NUM_DISTRIBUTIONS) < 1 / eos_every
        logits[ends, EOS_TOKEN_IDS[0]] = 30.0
    return logits


def tokenizer_json() -> bytes:
    """A byte-level tokenizer in the JSON of the `tokenizers` library."""
    characters = _byte_characters()
    added = [
        {
            "id": NUM_BYTES + index,
            "content": content,
            "special": True,
            "single_word": False,
            "lstrip": False,
            "rstrip": False,
            "normalized": False,
        }
        for index, content in enumerate(SPECIAL_TOKENS)
    ]
    byte_level = {
        "type": "ByteLevel",
        "add_prefix_space": False,
        "trim_offsets": True,
        "use_regex": False,
    }
    tokenizer = {
        "version": "1.0",
        "added_tokens": added,
        "pre_tokenizer": byte_level,
        "decoder": byte_level,
        "model": {
            "type": "BPE",
            "vocab": {character: byte for byte, character in enumerate(characters)},
            "merges": [],
        },
    }
    return json.dumps(tokenizer).encode()


def _byte_characters() -> Sequence[str]:
    """The printable character that stands for each byte in a byte-level vocabulary (GPT-2's)."""
    printable = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    substitutes = iter(range(0x100, 0x200))
    return [chr(byte if byte in printable else next(substitutes)) for byte in range(NUM_BYTES)]


def _is_prompt(sequence: ScheduledSequence) -> bool:
    return sequence.start == 0 or len(sequence.token_ids) > 1


def _pretend_to_read(options: FakeOptions, progress: ProgressCallback) -> None:
    num_parts = max(1, round(options.load_seconds / 0.05))
    for part in range(num_parts):
        progress(
            LoadProgress("loading", options.load_bytes * part // num_parts, options.load_bytes)
        )
        time.sleep(options.load_seconds / num_parts)
    progress(LoadProgress("loading", options.load_bytes, options.load_bytes))


def _hang() -> NoReturn:
    while True:
        time.sleep(3600)


def _fingerprint(options: FakeOptions) -> str:
    return hashlib.sha256(f"fake {options.eos_every}".encode()).hexdigest()[:16]
