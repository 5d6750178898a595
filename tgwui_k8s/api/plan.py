"""What one HTTP request wants generated, and how the tokens become text."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from tgwui_k8s.api.choice import Choice
from tgwui_k8s.api.parsers.events import Parser
from tgwui_k8s.api.state import ServedModel
from tgwui_k8s.api.stop_strings import StopStrings
from tgwui_k8s.api.text_stream import TextStream
from tgwui_k8s.contract import GenerationRequest, TopLogprobs


@dataclass(slots=True, eq=False)
class PromptRun:
    """One engine request under way."""

    request: GenerationRequest
    choices: list[Choice]
    num_open: int
    """Choices that have not ended."""
    num_cached_tokens: int = 0
    prompt_logprobs: tuple[TopLogprobs, ...] = field(default=())


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """What is to be generated, and how it becomes text."""

    route: str
    response_id: str
    model: ServedModel
    requests: Sequence[GenerationRequest]
    """One per prompt; all with the same number of choices."""
    arrival: float
    """On the monotonic clock: when the HTTP request came."""
    timeout_seconds: float
    """From the arrival."""
    stop: Sequence[str] = ()
    skip_special_tokens: bool = True
    visible_token_ids: frozenset[int] = frozenset()
    """Special tokens that are not skipped, because the parser must see them."""
    resume_text_lengths: Sequence[int] = ()
    """Per choice; empty: all that the resumed tokens complete has been delivered."""
    make_parser: Callable[[], Parser] | None = None
    """What takes a chat answer apart; None: a completion, whose text is all there is."""

    @property
    def num_choices(self) -> int:
        """Choices generated per prompt."""
        return self.requests[0].num_choices

    def make_prompts(self) -> list[PromptRun]:
        """Fresh state for every prompt; the choices of all prompts are numbered through."""
        stop = StopStrings(self.stop)
        runs: list[PromptRun] = []
        for request in self.requests:
            first = len(runs) * request.num_choices
            choices = [
                self._make_choice(request, place, first + place, stop)
                for place in range(request.num_choices)
            ]
            runs.append(PromptRun(request, choices, len(choices)))
        return runs

    def _make_choice(
        self, request: GenerationRequest, place: int, index: int, stop: StopStrings
    ) -> Choice:
        resumed = request.resume_token_ids[place] if request.resume_token_ids else ()
        text_length = self.resume_text_lengths[index] if self.resume_text_lengths else None
        stream = TextStream(
            self.model.tokenizer,
            request.prompt_token_ids,
            stop=stop,
            skip_special_tokens=self.skip_special_tokens,
            visible_token_ids=self.visible_token_ids,
            min_tokens=request.params.min_tokens,
            resume_token_ids=resumed,
            resume_text_length=text_length,
        )
        is_resumed = bool(resumed or text_length)
        parser = None if self.make_parser is None else self.make_parser()
        return Choice(index, stream, len(resumed), is_resumed=is_resumed, parser=parser)
