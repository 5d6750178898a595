"""The fake loader: its text is an oracle, its faults come when told."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from loaders.fake import CHAT_TEMPLATE, EOS_TOKEN_IDS, FakeLoader, FakeRunner
from tests.helpers.paged_driver import PagedDriver
from tgwui_k8s.api.chat_template import DEFAULT, ChatTemplate
from tgwui_k8s.api.tokenizer import Tokenizer
from tgwui_k8s.contract import Batch, LoadProgress, LoadRequest, ScheduledSequence
from tgwui_k8s.errors import IntegrityError, NotEnoughMemoryError, StartupError


def make_runner(**options: str) -> FakeRunner:
    """A runner for two sequences of 64 tokens."""
    request = LoadRequest(
        model_path="fake", loader="fake", max_model_len=64, max_num_seqs=2, options=options
    )
    return FakeLoader().load(request, lambda progress: None)


def one_token(start: int, token_id: int, table: list[int]) -> Batch:
    """A batch of one sequence with one token."""
    part = ScheduledSequence(
        row=0, start=start, token_ids=[token_id], block_tables=(table,), num_logits=1
    )
    return Batch([part], 1)


def test_same_prompt_gives_the_same_text_in_every_process() -> None:
    """The text is fixed: a changed one means that fingerprints no longer tell the truth."""
    text = bytes(PagedDriver(make_runner()).generate(list(b"Once upon a time"), 24))

    assert text == b"eieahiisdteiiieeiireitnt"


def test_every_earlier_token_counts() -> None:
    """Changing the first token of a long prompt changes what comes after the last."""
    driver = PagedDriver(make_runner())
    prompt = list(b"The first letter is far away from the last one.")

    _, logits = driver.prefill(prompt)
    _, changed = driver.prefill([ord("t"), *prompt[1:]])

    assert not np.array_equal(logits[-1], changed[-1])


def test_wrong_block_table_changes_the_text() -> None:
    """Reading another sequence's block is seen in the logits."""
    runner = make_runner()
    driver = PagedDriver(runner)
    first, _ = driver.prefill(list(range(20)))
    second, _ = driver.prefill(list(range(100, 120)))
    right = runner.execute(one_token(20, 5, first.block_tables[0]))
    mixed = [second.block_tables[0][0], first.block_tables[0][1]]

    assert not np.array_equal(runner.execute(one_token(20, 5, mixed)), right)


def test_reading_what_nobody_wrote_is_an_error() -> None:
    """A scheduler that skips tokens is found out at once."""
    with pytest.raises(IntegrityError):
        make_runner().execute(one_token(5, 1, [0]))


def test_text_ends_only_where_asked() -> None:
    """Without `eos_every` no end-of-sequence token is ever likely; with it some are."""
    prompt = list(b"Hello")

    endless = PagedDriver(make_runner()).generate(prompt, 50)
    ending = PagedDriver(make_runner(eos_every="4")).generate(prompt, 50)

    assert not set(EOS_TOKEN_IDS) & set(endless)
    assert set(EOS_TOKEN_IDS) & set(ending)


def test_tokenizer_and_template_come_with_the_model() -> None:
    """Nothing is read from disk: bytes are tokens, chats render."""
    info = make_runner().info
    tokenizer = Tokenizer.load(Path("nowhere"), tokenizer_json=info.tokenizer_json)
    template = ChatTemplate({DEFAULT: CHAT_TEMPLATE}, tokenizer.special_tokens)
    text = template.render([{"role": "user", "content": "größer 你好"}])

    token_ids = tokenizer.encode(text)

    assert info.chat_template == CHAT_TEMPLATE
    assert text == "<|im_start|>user\ngrößer 你好<|im_end|>\n<|im_start|>assistant\n"
    assert token_ids[:5] == [257, *b"user"]
    assert tokenizer.decode(token_ids, skip_special_tokens=False) == text
    assert tokenizer.vocab_size == info.vocab_size


def test_block_size_and_memory_are_the_request_s() -> None:
    """The KV cache is as large as asked: four bytes a token."""
    request = LoadRequest(
        model_path="fake", loader="fake", block_size=8, kv_cache_bytes=8 * 4 * 10 + 31
    )
    layout = FakeLoader().load(request, lambda progress: None).layout

    assert (layout.block_size, layout.groups[0].num_blocks) == (8, 10)


def test_cache_smaller_than_a_block_is_refused() -> None:
    """Too little memory is an error that says so."""
    request = LoadRequest(model_path="fake", loader="fake", kv_cache_bytes=10)

    with pytest.raises(NotEnoughMemoryError, match="block"):
        FakeLoader().load(request, lambda progress: None)


def test_loading_takes_time_and_reports_bytes() -> None:
    """`load_seconds` and `load_bytes` make a load that probes can watch."""
    seen: list[LoadProgress] = []
    request = LoadRequest(
        model_path="fake",
        loader="fake",
        options={"load_seconds": "0.1", "load_bytes": "1000"},
    )
    runner = FakeLoader().load(request, seen.append)

    assert [progress.bytes_read for progress in seen] == [0, 500, 1000]
    assert runner.info.weight_bytes == 1000


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"speed": "1"}, "no option 'speed'"),
        ({"load_seconds": "soon"}, "not a number"),
        ({"load_seconds": "nan"}, "out of range"),
        ({"eos_every": "-1"}, "out of range"),
        ({"fail_load": "no weights, as asked"}, "^no weights, as asked$"),
    ],
)
def test_bad_options_and_asked_for_failures_are_clear(options: dict[str, str], reason: str) -> None:
    """Every wrong option is refused with its name; `fail_load` fails with its own words."""
    with pytest.raises(StartupError, match=reason):
        make_runner(**options)


def test_step_fails_when_told() -> None:
    """`error_after_steps` counts steps."""
    runner = make_runner(error_after_steps="2")
    runner.execute(one_token(0, 1, [0]))

    with pytest.raises(RuntimeError, match="as asked"):
        runner.execute(one_token(1, 1, [0]))
