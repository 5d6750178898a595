"""The engine without a server, on the fake loader."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from loaders.fake import FakeLoader
from tgwui_k8s import registry
from tgwui_k8s.config import Settings
from tgwui_k8s.contract import Batch, LoadProgress, LoadRequest, ProgressCallback
from tgwui_k8s.errors import (
    ContextLengthError,
    InvalidRequestError,
    RequestError,
    StartupError,
    UnsupportedModelError,
    UnsupportedParameterError,
    UsageError,
)
from tgwui_k8s.llm import LLM
from tgwui_k8s.sampling import SamplingParams


@pytest.fixture(name="llm")
def llm_fixture() -> Iterator[LLM]:
    """A fake model that batches at most four sequences."""
    with LLM("fake", loader="fake", max_num_seqs=4) as llm:
        yield llm


def greedy(max_tokens: int = 12, **more: object) -> SamplingParams:
    return SamplingParams(max_tokens=max_tokens, temperature=0.0, ignore_eos=True, **more)


def test_one_prompt_gives_one_completion(llm: LLM) -> None:
    """Text, tokens and the reason for the end belong together."""
    (completion,) = llm.generate("hello", greedy())

    assert len(completion.token_ids) == 12
    assert completion.text == llm.tokenizer.decode(completion.token_ids)
    assert completion.finish_reason == "length"
    assert tuple(llm.tokenizer.encode("hello")) == completion.prompt_token_ids


def test_many_prompts_come_back_in_order(llm: LLM) -> None:
    """More prompts than run at once, as text and as ids, each as if it were alone."""
    prompts = [f"prompt {number}" for number in range(10)]
    ids = [llm.tokenizer.encode(prompt) for prompt in prompts]
    alone = [llm.generate(prompt, greedy())[0] for prompt in prompts]

    assert alone == llm.generate(prompts, greedy())
    assert alone == llm.generate(ids, greedy())


def test_streamed_text_is_the_completion(llm: LLM) -> None:
    """The pieces are the text, in more than one piece."""
    (completion,) = llm.generate("hello", greedy())
    pieces = list(llm.stream("hello", greedy()))

    assert completion.text == "".join(pieces)
    assert len([piece for piece in pieces if piece]) > 1


def test_stop_string_ends_the_text_before_it(llm: LLM) -> None:
    """The stop string is not in the text, and nothing runs on behind it."""
    (whole,) = llm.generate("hello", greedy(40))
    stop = whole.text[10:13]
    (cut,) = llm.generate("hello", greedy(40), stop=[stop])

    assert whole.text.split(stop)[0] == cut.text
    assert cut.finish_reason == "stop"
    assert not llm.core.has_work


def test_logprobs_belong_to_the_tokens(llm: LLM) -> None:
    """One entry per token; prompt logprobs for all but the first prompt token."""
    (completion,) = llm.generate("hello", greedy(logprobs=2, prompt_logprobs=1))

    assert completion.token_ids == tuple(entry.token_id for entry in completion.logprobs)
    assert completion.prompt_logprobs is not None
    assert completion.prompt_token_ids[1:] == tuple(
        entry.token_id for entry in completion.prompt_logprobs
    )


def test_default_is_a_short_greedy_completion(llm: LLM) -> None:
    """Without parameters the answer is deterministic and at most 16 tokens long."""
    (first,), (second,) = llm.generate("hello"), llm.generate("hello")

    assert first == second
    assert len(first.token_ids) <= 16


def test_closing_a_stream_aborts_its_request(llm: LLM) -> None:
    """Whoever stops reading leaves nothing behind in the engine."""
    stream = llm.stream("hello", greedy(1000))
    next(stream)
    stream.close()

    assert not llm.core.has_work
    llm.core.check_integrity()


def test_chat_messages_become_a_prompt(llm: LLM) -> None:
    """The model's template renders them, with the generation prompt at the end."""
    text = llm.tokenizer.decode(
        llm.render_chat([{"role": "user", "content": "hi"}]), skip_special_tokens=False
    )

    assert "hi" in text
    assert text.endswith("assistant\n")


def test_model_without_template_refuses_chat(llm: LLM) -> None:
    """There is no guessing of templates."""
    llm.chat_template = None

    with pytest.raises(UnsupportedParameterError, match="no chat template"):
        llm.render_chat([{"role": "user", "content": "hi"}])


@pytest.mark.parametrize(
    ("prompt", "error"),
    [
        ([], InvalidRequestError),
        ([1, 10**9], InvalidRequestError),
        ([1, -1], InvalidRequestError),
        ([1] * 5000, ContextLengthError),
    ],
)
def test_bad_prompts_are_refused_before_anything_runs(
    llm: LLM, prompt: list[int], error: type[Exception]
) -> None:
    """Empty, outside the vocabulary, too long: nothing of the call is started."""
    with pytest.raises(error):
        llm.generate([[1, 2], prompt], greedy())

    assert not llm.core.has_work


def test_failed_request_raises_and_drops_the_others(llm: LLM) -> None:
    """An error of one request ends the call and leaves the engine clean."""
    llm.core.runner.execute = _no_probabilities  # type: ignore[method-assign]

    with pytest.raises(RequestError, match="no valid probabilities"):
        llm.generate(["a", "b"], greedy())
    assert not llm.core.has_work


def test_settings_may_be_complete_already() -> None:
    """Settings merged elsewhere are taken as they are, and progress is reported."""
    settings = Settings()
    seen: list[LoadProgress] = []
    model = type(settings.model)(model="fake", loader="fake")
    with LLM(Settings(model=model), progress=seen.append) as llm:
        assert llm.info.loader == "fake"

    assert seen
    with pytest.raises(UsageError, match="all settings in one object"):
        LLM(settings, max_num_seqs=4)


def test_wrong_settings_and_models_are_refused() -> None:
    """The same errors as on the command line."""
    with pytest.raises(UsageError, match="did you mean 'max_num_seqs'"):
        LLM("fake", loader="fake", max_num_seq=4)
    with pytest.raises(StartupError):
        LLM("no-such-model")
    with pytest.raises(StartupError, match="'no-such-loader' is unknown"):
        LLM("/", loader="no-such-loader")


def test_model_is_freed_when_its_text_side_fails(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A chat template that does not compile frees the model that was already loaded."""
    template = tmp_path / "bad.jinja"
    template.write_text("{% if %}")
    loader = _WatchedLoader()
    monkeypatch.setattr(registry, "get_loader", lambda _: loader)

    with pytest.raises((UsageError, StartupError)):
        LLM("fake", loader="fake", chat_template=str(template))
    assert loader.num_closed == 1


def test_backend_that_batches_by_itself_needs_a_server(monkeypatch: pytest.MonkeyPatch) -> None:
    """vLLM and its like cannot be stepped from here, and say so."""
    monkeypatch.setattr(registry, "get_loader", lambda _: _BatchingLoader())

    with pytest.raises(UnsupportedModelError, match="tgwui-k8s serve"):
        LLM("fake", loader="fake")


class _WatchedLoader:
    """The fake, counting how often its model is closed."""

    def __init__(self) -> None:
        self.num_closed = 0

    def load(self, request: LoadRequest, progress: ProgressCallback) -> object:
        runner = FakeLoader().load(request, progress)
        runner.close = self._count  # type: ignore[method-assign]
        return runner

    def _count(self) -> None:
        self.num_closed += 1


class _BatchingLoader:
    """A loader whose model batches by itself."""

    def load(self, request: LoadRequest, progress: ProgressCallback) -> object:
        return object()


def _no_probabilities(batch: Batch) -> np.ndarray:
    return np.full((batch.num_logits, 259), np.nan, dtype=np.float32)
