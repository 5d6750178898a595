"""`POST /v1/completions`."""

from __future__ import annotations

import time

import msgspec
from fastapi import APIRouter
from msgspec import UNSET
from starlette.requests import Request
from starlette.responses import Response

from tgwui_k8s.api.answer import (
    answer_head,
    check_stream_options,
    describe_generation,
    extensions,
    new_response_id,
    off_the_loop_if_large,
    wants_usage,
)
from tgwui_k8s.api.body import read_body
from tgwui_k8s.api.choice import ChoiceChunk
from tgwui_k8s.api.constraints import constraint_of, grammar_text, require_grammars
from tgwui_k8s.api.engine_requests import Asked, engine_requests, timeout_of
from tgwui_k8s.api.fill_in_middle import with_suffix
from tgwui_k8s.api.generation import Generation
from tgwui_k8s.api.logprobs import completion_logprobs, prompt_text_offsets
from tgwui_k8s.api.plan import Plan
from tgwui_k8s.api.prompt_tokens import prompt_tokens
from tgwui_k8s.api.sampling_fields import Reported
from tgwui_k8s.api.schemas.completions import CompletionRequest
from tgwui_k8s.api.schemas.fields import refuse_unsupported
from tgwui_k8s.api.schemas.responses import Completion, CompletionChoice, CompletionLogprobs
from tgwui_k8s.api.sse import Envelope, GenerationResponse, frame
from tgwui_k8s.api.state import ServedModel, ServerState
from tgwui_k8s.errors import InvalidRequestError

ROUTE = "/v1/completions"
DEFAULT_MAX_TOKENS = 16


def create_router(state: ServerState) -> APIRouter:
    """The route for completions."""
    router = APIRouter(tags=["generation"])

    @router.post(
        ROUTE,
        summary="Complete text",
        openapi_extra=describe_generation(CompletionRequest, Completion, Completion),
    )
    async def create_completion(request: Request) -> Response:
        """OpenAI's completions with text-generation-webui's samplers."""
        arrival = time.monotonic()
        state.require_model()
        asked = await read_body(request, CompletionRequest)
        return await off_the_loop_if_large(request, answer_completion, asked, state, arrival)

    return router


def answer_completion(
    request: CompletionRequest, state: ServerState, arrival: float
) -> GenerationResponse:
    """The answer, ready to run; CPU work. Raises `RequestError` for what cannot be served."""
    plan = plan_completion(request, state, arrival)
    return GenerationResponse(
        Generation(plan, state),
        CompletionWriter(request, plan),
        keep_alive_seconds=state.settings.server.sse_keep_alive_seconds if request.stream else None,
    )


def plan_completion(request: CompletionRequest, state: ServerState, arrival: float) -> Plan:
    """What to generate. Raises `RequestError` for what cannot be served."""
    refuse_unsupported(request)
    model = state.require_model(request.model)
    _check_combinations(request)
    settings = state.settings.server
    response_id = new_response_id("cmpl-")
    asked = Asked(
        response_id=response_id,
        param="prompt",
        prompts=_encoded(request, model),
        max_tokens=request.max_tokens,
        default_max_tokens=DEFAULT_MAX_TOKENS,
        num_choices=_num_generated(request),
        reported=Reported(
            logprobs=request.logprobs if not _ranks(request) else request.logprobs or 0,
            prompt_logprobs=request.logprobs if request.echo else None,
        ),
        grammar=_grammar(request, model),
    )
    return Plan(
        route=ROUTE,
        response_id=response_id,
        model=model,
        requests=engine_requests(request, asked, model, settings),
        arrival=arrival,
        timeout_seconds=timeout_of(request, settings),
        stop=request.stop or (),
        skip_special_tokens=request.skip_special_tokens is not False,
        resume_text_lengths=request.resume_text_lengths or (),
    )


def _encoded(request: CompletionRequest, model: ServedModel) -> list[list[int]]:
    """Every prompt as token ids."""
    prompts = []
    for prompt in request.prompts:
        if isinstance(prompt, str):
            text = prompt
            if request.suffix:
                text = with_suffix(prompt, request.suffix, model.tokenizer)
            is_cut = bool(request.truncation_length)
            prompts.append(
                prompt_tokens(
                    text, model, "prompt", may_exceed=is_cut, add_bos=request.add_bos_token
                )
            )
        elif request.suffix:
            raise InvalidRequestError("'suffix' needs a prompt that is text.", param="suffix")
        else:
            prompts.append(prompt)
    return prompts


def _check_combinations(request: CompletionRequest) -> None:
    check_stream_options(request)
    if request.max_tokens == 0 and not request.echo:
        raise InvalidRequestError(
            "Invalid 'max_tokens': integer below minimum value. Expected a value >= 1 without "
            "'echo', but got 0 instead.",
            param="max_tokens",
            code="integer_below_min_value",
        )
    if request.best_of is None:
        return
    if request.best_of < (request.n or 1):
        raise InvalidRequestError(
            "'best_of' must not be less than 'n'.", param="best_of", code="invalid_value"
        )
    if _ranks(request) and (request.stream or request.resume_token_ids is not None):
        raise InvalidRequestError(
            "'best_of' above 'n' cannot be streamed or resumed: which choices are returned is "
            "known at the end only.",
            param="best_of",
            code="invalid_value",
        )


def _grammar(request: CompletionRequest, model: ServedModel) -> str:
    constraint = constraint_of(request)
    if constraint is None:
        return ""
    require_grammars(model, constraint.param)
    return grammar_text([constraint.grammar])


def _num_generated(request: CompletionRequest) -> int:
    """Choices to generate per prompt."""
    return request.best_of or request.n or 1


def _ranks(request: CompletionRequest) -> bool:
    """True when more choices are generated than returned."""
    return _num_generated(request) > (request.n or 1)


class CompletionWriter:
    """Chunks as OpenAI's text completions."""

    def __init__(self, request: CompletionRequest, plan: Plan) -> None:
        self._plan = plan
        self._num_returned = request.n or 1
        self._logprobs = request.logprobs is not None
        self._returns_ids = request.return_token_ids is True
        self._wants_usage = wants_usage(request)
        self._echoes = _echoed_texts(request, plan) if request.echo else None
        self._head = answer_head(plan.response_id, plan.model)
        self._envelope = Envelope(
            Completion(**self._head, choices=[], usage=None if self._wants_usage else UNSET)
        )

    def events(self, generation: Generation, chunks: list[ChoiceChunk]) -> bytes:
        """One event per chunk."""
        return b"".join([self._envelope.frame(self._choice(generation, chunk)) for chunk in chunks])

    def last_events(self, generation: Generation) -> bytes:
        """The usage, where it was asked for."""
        if not self._wants_usage:
            return b""
        return frame(Completion(**self._head, choices=[], usage=generation.usage))

    def whole(self, generation: Generation, choices: list[ChoiceChunk]) -> bytes:
        """The answer with the choices to return."""
        returned = [
            msgspec.structs.replace(self._choice(generation, chunk), index=index)
            for index, chunk in enumerate(self._best(choices))
        ]
        return msgspec.json.encode(
            Completion(**self._head, choices=returned, usage=generation.usage)
        )

    def _best(self, choices: list[ChoiceChunk]) -> list[ChoiceChunk]:
        """Of every prompt the likeliest choices first, as many as are returned."""
        num_generated = self._plan.num_choices
        if num_generated == self._num_returned:
            return choices
        best = []
        for first in range(0, len(choices), num_generated):
            ranked = sorted(choices[first : first + num_generated], key=_mean_logprob, reverse=True)
            best += ranked[: self._num_returned]
        return best

    def _choice(self, generation: Generation, chunk: ChoiceChunk) -> CompletionChoice:
        echo = self._echo(generation, chunk)
        return CompletionChoice(
            index=chunk.index,
            text=chunk.text if echo is None else echo + chunk.text,
            logprobs=self._logprobs_of(generation, chunk, echo) if self._logprobs else None,
            finish_reason=chunk.finish_reason,
            **(extensions(self._plan, chunk) if self._returns_ids else {}),
        )

    def _echo(self, generation: Generation, chunk: ChoiceChunk) -> str | None:
        """The prompt's text, where this chunk begins with it. A resumed client has it already."""
        if self._echoes is None or not chunk.is_first or generation.is_resumed(chunk.index):
            return None
        return self._echoes[chunk.index // self._plan.num_choices]

    def _logprobs_of(
        self, generation: Generation, chunk: ChoiceChunk, echo: str | None
    ) -> CompletionLogprobs:
        tokenizer = self._plan.model.tokenizer
        prompt_index = chunk.index // self._plan.num_choices
        start = len(self._echoes[prompt_index]) if self._echoes is not None else 0
        offsets = [start + offset for offset in chunk.token_offsets]
        if echo is None:
            return completion_logprobs(tokenizer, chunk.token_ids, chunk.logprobs, offsets)
        prompt_token_ids = self._plan.requests[prompt_index].prompt_token_ids
        # There are none where it was stopped before the first step.
        prompt_logprobs = generation.prompt_logprobs(prompt_index) or [None] * (
            len(prompt_token_ids) - 1
        )
        prompt_offsets = prompt_text_offsets(
            tokenizer,
            prompt_token_ids,
            echo,
            skip_special_tokens=self._plan.skip_special_tokens,
        )
        return completion_logprobs(
            tokenizer,
            [*prompt_token_ids, *chunk.token_ids],
            [None, *prompt_logprobs, *chunk.logprobs],
            [*prompt_offsets, *offsets],
        )


def _echoed_texts(request: CompletionRequest, plan: Plan) -> list[str]:
    """Per prompt the text that `echo` puts in front: as it was sent, where nothing was cut."""
    texts = []
    for prompt, engine_request in zip(request.prompts, plan.requests, strict=True):
        if isinstance(prompt, str) and not request.truncation_length:
            texts.append(prompt)
        else:
            texts.append(
                plan.model.tokenizer.decode(
                    engine_request.prompt_token_ids,
                    skip_special_tokens=plan.skip_special_tokens,
                )
            )
    return texts


def _mean_logprob(choice: ChoiceChunk) -> float:
    """What `best_of` ranks by."""
    if not choice.logprobs:
        return float("-inf")
    return sum(top.logprob for top in choice.logprobs) / len(choice.logprobs)
