"""The engine without a server: one process, one thread, the same core, loaders and text handling.

    with LLM("demo") as llm:
        print(llm.generate("This is a cake recipe:")[0].text)

For scripts, benchmarks and `tgwui-k8s generate`. Not safe to use from several threads.
"""

from __future__ import annotations

import sys
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from msgspec.structs import replace

from tgwui_k8s.api.chat_template import DEFAULT, ChatTemplate
from tgwui_k8s.api.text_stream import TextPiece, TextStream
from tgwui_k8s.api.tokenizer import Tokenizer
from tgwui_k8s.config import Settings
from tgwui_k8s.contract import (
    FinishReason,
    GenerationRequest,
    LoadProgress,
    ModelInfo,
    ModelRunner,
    ProgressCallback,
    TokenDelta,
    TopLogprobs,
)
from tgwui_k8s.engine.core import EngineCore
from tgwui_k8s.errors import (
    ContextLengthError,
    IntegrityError,
    InvalidRequestError,
    RequestError,
    UnsupportedModelError,
    UnsupportedParameterError,
    UsageError,
)
from tgwui_k8s.load_request import engine_settings, load_request
from tgwui_k8s.registry import load_model
from tgwui_k8s.sampling import SamplingParams
from tgwui_k8s.settings import load_settings
from tgwui_k8s.storage.model_dir import tokenizer_folder

Prompt = str | Sequence[int]


@dataclass(frozen=True)
class Completion:
    """What was generated for one prompt."""

    text: str
    token_ids: tuple[int, ...]
    finish_reason: FinishReason
    prompt_token_ids: tuple[int, ...]
    logprobs: tuple[TopLogprobs, ...] = ()
    """One per token, where `SamplingParams.logprobs` asked for them."""
    prompt_logprobs: tuple[TopLogprobs, ...] | None = None


@dataclass(eq=False)
class _Running:
    """A request under way, and what it has brought so far."""

    request: GenerationRequest
    stream: TextStream
    text: list[str] = field(default_factory=list)
    token_ids: list[int] = field(default_factory=list)
    logprobs: list[TopLogprobs] = field(default_factory=list)
    prompt_logprobs: tuple[TopLogprobs, ...] | None = None
    finish_reason: FinishReason | None = None

    def take(self, delta: TokenDelta) -> TextPiece:
        """Book a delta and return the text it sets free."""
        if delta.finish_reason == "error":
            raise RequestError(delta.error or "generation failed", code=delta.error_code)
        piece = self.stream.feed(
            delta.token_ids,
            final=delta.finish_reason is not None,
            stop_token_id=delta.stop_token_id,
        )
        self.text.append(piece.text)
        self.token_ids += piece.token_ids
        self.logprobs += delta.logprobs
        self.prompt_logprobs = delta.prompt_logprobs or self.prompt_logprobs
        self.finish_reason = "stop" if piece.stop_text is not None else delta.finish_reason
        return piece

    def completion(self) -> Completion:
        """The result of a finished request."""
        assert self.finish_reason is not None  # noqa: S101 - callers have waited for it
        return Completion(
            text="".join(self.text),
            token_ids=tuple(self.token_ids),
            finish_reason=self.finish_reason,
            prompt_token_ids=self.request.prompt_token_ids,
            logprobs=tuple(self.logprobs[: len(self.token_ids)]),
            prompt_logprobs=self.prompt_logprobs,
        )


class LLM:
    """A loaded model. Settings are those of `tgwui_k8s.config`, by field name.

    Raises `UsageError` for a wrong setting and `StartupError` where the model cannot be loaded.
    The environment and configuration files are not read: a script says what it means.
    """

    def __init__(
        self,
        model: str | Settings = "demo",
        *,
        progress: ProgressCallback | None = None,
        **settings: Any,
    ) -> None:
        """`model` is a name as in `--model`, or settings that are complete already."""
        if isinstance(model, str):
            model, _ = load_settings({"model": model, **settings}, environ={})
        elif settings:
            raise UsageError("give all settings in one object, or all by name")
        request = load_request(model)
        loaded = load_model(request, progress or _ignore)
        if not isinstance(loaded, ModelRunner):
            raise UnsupportedModelError(
                f"loader '{request.loader}' batches by itself and needs a server: tgwui-k8s serve"
            )
        self._runner = loaded
        self._num_requests = 0
        try:
            self._prepare_text(request.path, model.model.chat_template)
            loaded.warm_up()
            # Offline there is nobody to turn away: the queue takes every prompt.
            limits = replace(engine_settings(model.engine), max_waiting_requests=sys.maxsize)
            self.core = EngineCore(loaded, limits)
            self.core.adapters.load_all(request.adapters)
        except BaseException:
            loaded.close()
            raise

    def _prepare_text(self, model: Path, chat_template: str | None) -> None:
        folder = tokenizer_folder(model)
        self.tokenizer = Tokenizer.of_model(model, self.info.loader) or Tokenizer.load(
            folder, tokenizer_json=self.info.tokenizer_json
        )
        special_tokens = self.tokenizer.special_tokens
        override = None if chat_template is None else Path(chat_template)
        built_in = self.info.chat_template
        if override is None and built_in is not None:
            self.chat_template: ChatTemplate | None = ChatTemplate(
                {DEFAULT: built_in}, special_tokens
            )
        else:
            self.chat_template = ChatTemplate.load(folder, special_tokens, override)

    @property
    def info(self) -> ModelInfo:
        """Facts of the loaded model."""
        return self._runner.info

    def close(self) -> None:
        """Free the model. The object is not used afterwards."""
        self._runner.close()

    def __enter__(self) -> LLM:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def generate(
        self,
        prompts: str | Sequence[Prompt],
        params: SamplingParams | None = None,
        *,
        stop: Sequence[str] = (),
        adapter: str = "",
    ) -> list[Completion]:
        """Complete one prompt or many (texts, or lists of token ids), all in one batch.

        `params`: None means greedy decoding of at most 16 tokens, as OpenAI's completions count.
        `adapter` is the name of one of the setting `lora`.
        Results are in the order of the prompts. Raises `InvalidRequestError` before anything runs.
        """
        many: Sequence[Prompt] = [prompts] if isinstance(prompts, str) else prompts
        params = params or SamplingParams(max_tokens=16, temperature=0.0)
        running = [self._prepare(prompt, params, stop, adapter) for prompt in many]
        for _ in self._run(running):
            pass
        return [item.completion() for item in running]

    def stream(
        self,
        prompt: Prompt,
        params: SamplingParams,
        *,
        stop: Sequence[str] = (),
        adapter: str = "",
    ) -> Iterator[str]:
        """Complete one prompt and yield its text as it becomes certain.

        Closing the iterator aborts the request.
        """
        running = self._prepare(prompt, params, stop, adapter)
        return (piece.text for _, piece in self._run([running]))

    def render_chat(
        self, messages: Sequence[Mapping[str, Any]], **template_kwargs: Any
    ) -> list[int]:
        """Messages as a prompt of token ids.

        Raises `UnsupportedParameterError` where the model has no chat template.
        """
        if self.chat_template is None:
            raise UnsupportedParameterError("this model has no chat template", param="messages")
        text = self.chat_template.render(
            [dict(message) for message in messages], template_kwargs=template_kwargs
        )
        return self.tokenizer.encode(text, add_special_tokens=False)

    def _prepare(
        self, prompt: Prompt, params: SamplingParams, stop: Sequence[str], adapter: str
    ) -> _Running:
        token_ids = self.tokenizer.encode(prompt) if isinstance(prompt, str) else list(prompt)
        limit = self.info.max_model_len
        if not token_ids:
            raise InvalidRequestError("the prompt is empty", param="prompt")
        if not all(0 <= token_id < self.info.vocab_size for token_id in token_ids):
            raise InvalidRequestError("the prompt has ids outside the vocabulary", param="prompt")
        if len(token_ids) >= limit:
            raise ContextLengthError(
                f"the prompt has {len(token_ids)} tokens; the model's context is {limit}"
            )
        self._num_requests += 1
        request = GenerationRequest(
            request_id=f"offline-{self._num_requests}",
            prompt_token_ids=tuple(token_ids),
            params=params,
            adapter=adapter,
        )
        stream = TextStream(
            self.tokenizer, request.prompt_token_ids, stop=stop, min_tokens=params.min_tokens
        )
        return _Running(request, stream)

    def _run(self, requests: Sequence[_Running]) -> Iterator[tuple[_Running, TextPiece]]:
        """Step the core until all requests have finished; aborts the rest when closed early."""
        live = {item.request.request_id: item for item in requests}
        ready: deque[tuple[_Running, TextPiece]] = deque()
        try:
            for item in requests:
                self.core.add_request(item.request)
            while live:
                if not self.core.has_work:
                    raise IntegrityError("the engine forgot a request")
                for answer in self.core.step():
                    ready.extend(self._take(live, answer.request_id, answer.deltas))
                while ready:
                    yield ready.popleft()
        finally:
            for request_id in live:
                self.core.abort(request_id)

    def _take(
        self, live: dict[str, _Running], request_id: str, deltas: Sequence[TokenDelta]
    ) -> Iterator[tuple[_Running, TextPiece]]:
        for delta in deltas:
            item = live.get(request_id)
            if item is None:
                return
            yield item, item.take(delta)
            if item.finish_reason is not None:
                del live[request_id]
                self.core.abort(request_id)


def _ignore(progress: LoadProgress) -> None:
    """Nobody watches the loading."""
