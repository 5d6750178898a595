"""Grammars at work: compiled beside the step loop, advanced token by token, masks for a batch.

A grammar is text that the llguidance library reads; the API process has validated it. Compiling
happens in a thread of its own, because the first grammar must build the tokenizer's trie and a
large schema takes tens of milliseconds; a request waits for it outside the scheduler.

llguidance is imported with the first grammar: engines that never see one do not pay for it.
"""

from __future__ import annotations

import json
import threading
from collections import OrderedDict
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np

from tgwui_k8s.contract import ModelInfo, SamplingRow
from tgwui_k8s.errors import StartupError
from tgwui_k8s.runtime.limits import cpu_quota
from tgwui_k8s.storage.gguf_tokenizer import read_gguf_tokenizer
from tgwui_k8s.storage.loader_names import LLAMA_CPP
from tgwui_k8s.storage.model_dir import TOKENIZER_FILE, tokenizer_folder

MAX_CACHED_GRAMMARS = 64
"""Compiled grammars kept for the next request; some 100 KiB each, megabytes for the largest."""

_BITS = 32
_PARALLEL_FROM = 4
"""Fewer masks than this are computed sooner than other threads wake up."""
_MOST_THREADS = 8


class GrammarError(Exception):
    """A grammar does not compile, or does not allow what it has to."""


class GrammarState:
    """Where one sequence stands in its grammar; advanced with every token."""

    __slots__ = ("matcher",)

    def __init__(self, matcher: Any) -> None:
        """`matcher`: an `LLMatcher` of its own."""
        self.matcher = matcher

    def copy(self) -> GrammarState:
        """Another that stands at the same place."""
        return GrammarState(self.matcher.deep_copy())

    def take(self, token_ids: Sequence[int]) -> None:
        """Advance. Raises `GrammarError` for tokens the grammar does not allow here."""
        if not self.matcher.consume_tokens(list(token_ids)):
            raise GrammarError(_reason(self.matcher))

    @property
    def is_complete(self) -> bool:
        """True when nothing but an end-of-sequence token may follow."""
        stopped: bool = self.matcher.is_stopped()
        return stopped and not self.matcher.is_error()


class Grammars:
    """Compiles grammars for one model's vocabulary. `compile` may be called from any thread."""

    def __init__(self, info: ModelInfo, read_tokenizer: Callable[[], bytes]) -> None:
        """`read_tokenizer` returns the `tokenizers` library's JSON; called with the first grammar.

        It may raise `OSError` or a `StartupError`.
        """
        self._vocab_size = info.vocab_size
        self._eos_token_ids = list(info.eos_token_ids)
        self._read_tokenizer = read_tokenizer
        self._compiled: OrderedDict[str, Any] = OrderedDict()
        self._lock = threading.Lock()
        self._tokenizer: Any = None
        self._executor: Any = None

    @classmethod
    def of(cls, info: ModelInfo, model: Path) -> Grammars | None:
        """For the model at a path; None where grammars are not possible."""
        read_tokenizer = _tokenizer_reader(info, model)
        if find_spec("llguidance") is None or read_tokenizer is None:
            return None
        return cls(info, read_tokenizer)

    def compile(self, grammar: str) -> GrammarState:
        """The state before the first token. Raises `GrammarError`."""
        with self._lock:
            matcher = self._compiled.get(grammar)
            if matcher is None:
                matcher = self._compile(grammar)
                self._compiled[grammar] = matcher
                while len(self._compiled) > MAX_CACHED_GRAMMARS:
                    self._compiled.popitem(last=False)
            else:
                self._compiled.move_to_end(grammar)
            return GrammarState(matcher.deep_copy())

    def set_masks(self, states: Sequence[GrammarState], rows: Sequence[SamplingRow]) -> None:
        """Set what every row's next token may be; all masks are computed side by side."""
        num_bits = max(self._tokenizer.vocab_size, self._vocab_size)
        words = np.zeros((len(states), -(-num_bits // _BITS)), np.int32)
        if len(states) < _PARALLEL_FROM:
            for state, mask in zip(states, words, strict=True):
                state.matcher.unsafe_compute_mask_ptr(mask.ctypes.data, mask.nbytes)
        else:
            numbered = [(state.matcher, i) for i, state in enumerate(states)]
            self._executor.unsafe_compute_mask_ptr(
                numbered, words.ctypes.data, words.shape[1] * words.itemsize, len(states)
            )
        bits = np.unpackbits(words.view(np.uint8), axis=1, bitorder="little")
        for row, allowed in zip(rows, bits[:, : self._vocab_size].view(np.bool_), strict=True):
            row.allowed_token_ids = allowed

    def _compile(self, grammar: str) -> Any:
        import llguidance  # here, because few engines ever need it

        if self._tokenizer is None:
            self._tokenizer = self._load_tokenizer(llguidance.LLTokenizer)
            self._executor = llguidance.LLExecutor(num_threads=min(_MOST_THREADS, cpu_quota()))
        matcher = llguidance.LLMatcher(self._tokenizer, grammar, log_level=0)
        if matcher.is_error():
            raise GrammarError(_reason(matcher))
        return matcher

    def _load_tokenizer(self, make: Callable[..., Any]) -> Any:
        try:
            source = json.loads(self._read_tokenizer())
            source.update(truncation=None, padding=None)
            eos = [token_id for token_id in self._eos_token_ids if token_id < self._vocab_size]
            return make(json.dumps(source), eos_token=eos or None)
        except (OSError, StartupError, ValueError) as error:
            raise GrammarError(f"The model's tokenizer does not do for grammars: {error}") from None


class GrammarDesk:
    """Compiles in a thread, and keeps what waits for it; used by one thread, the step loop's."""

    def __init__(self, grammars: Grammars) -> None:
        self.grammars = grammars
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="grammar")
        self._pending: dict[str, Future[GrammarState]] = {}

    @property
    def has_pending(self) -> bool:
        """True while something waits for a grammar."""
        return bool(self._pending)

    def submit(self, request_id: str, grammar: str) -> None:
        """Compile for this request."""
        self._pending[request_id] = self._thread.submit(self.grammars.compile, grammar)

    def take_compiled(self, wait_seconds: float) -> list[tuple[str, Future[GrammarState]]]:
        """Requests whose grammar has been compiled, or has failed to; waits for the first."""
        if not self._pending:
            return []
        wait(self._pending.values(), wait_seconds, return_when="FIRST_COMPLETED")
        done = [(name, future) for name, future in self._pending.items() if future.done()]
        for name, _ in done:
            del self._pending[name]
        return done


def _tokenizer_reader(info: ModelInfo, model: Path) -> Callable[[], bytes] | None:
    """Reads what the loader made, or what the model's files hold; None for neither."""
    made, path = info.tokenizer_json, tokenizer_folder(model) / TOKENIZER_FILE
    if made is not None:
        return lambda: made
    if info.loader == LLAMA_CPP:
        return lambda: read_gguf_tokenizer(model).json
    return path.read_bytes if path.is_file() else None


def _reason(matcher: Any) -> str:
    """The library's words, without the backtrace and the grammar it may add."""
    lines = str(matcher.get_error() or matcher.stop_reason()).splitlines()
    return (lines[0] if lines else "unknown")[:300]
