"""Chunks as LMI's answer: one JSON object, or a line per token."""

from __future__ import annotations

import msgspec
from msgspec import UNSET

from tgwui_k8s.api.choice import ChoiceChunk
from tgwui_k8s.api.errors import error_body
from tgwui_k8s.api.generation import Generation
from tgwui_k8s.api.logprobs import LEAST_LOGPROB
from tgwui_k8s.api.plan import Plan
from tgwui_k8s.api.schemas.invocations import (
    InvocationAnswer,
    InvocationDetails,
    InvocationFinishReason,
    InvocationLine,
    InvocationParameters,
    InvocationRequest,
    InvocationToken,
)

END = -1
"""The id on a last line that no token belongs to: the end was no token, or has no text."""

_encoder = msgspec.json.Encoder()


class InvocationWriter:
    """One answer's writer; a stream's last line repeats the whole text."""

    def __init__(self, request: InvocationRequest, plan: Plan) -> None:
        self._inputs = request.prompts
        self._parameters = request.parameters or InvocationParameters()
        self._special_ids = plan.model.tokenizer.special_token_ids
        self._returns_list = not isinstance(request.inputs, str)
        self._text = ""
        self._held_text = ""
        """The beginning of a token of which the rest is still to come."""

    def events(self, generation: Generation, chunks: list[ChoiceChunk]) -> bytes:
        """A line per token that has come."""
        lines: list[InvocationLine] = []
        for chunk in chunks:
            tokens = self._tokens_of_stream(chunk)
            if chunk.finish_reason is None:
                lines += map(InvocationLine, tokens)
                continue
            *before, last = tokens or [InvocationToken(END, self._held_text)]
            text = self._prefix(0) + self._text
            details = self._details(chunk, generation.usage.completion_tokens, 0)
            lines += [*map(InvocationLine, before), InvocationLine(last, text, details)]
        return b"".join(map(_line, lines))

    def last_events(self, generation: Generation) -> bytes:
        """The last token's line was the end."""
        return b""

    def done(self) -> bytes:
        """It has been said already."""
        return b""

    def failed(self, error: BaseException) -> bytes:
        """LMI's line for an error, and our envelope in it."""
        details = InvocationDetails("error", None, None)
        token = InvocationToken(END, "", -1.0, special_token=True)
        return _line(InvocationLine(token, "", details, error_body(error)["error"]))

    def whole(self, generation: Generation, choices: list[ChoiceChunk]) -> bytes:
        """An answer per input."""
        answers = [
            InvocationAnswer(self._prefix(choice.index) + choice.text, self._all_details(choice))
            for choice in choices
        ]
        return _encoder.encode(answers if self._returns_list else answers[0])

    def _prefix(self, index: int) -> str:
        return self._inputs[index] if self._parameters.return_full_text else ""

    def _all_details(self, choice: ChoiceChunk) -> InvocationDetails | msgspec.UnsetType:
        if not self._parameters.details:
            return UNSET
        details = self._details(choice, len(choice.token_ids), choice.index)
        return msgspec.structs.replace(details, tokens=self._tokens(choice))

    def _details(self, choice: ChoiceChunk, num_tokens: int, index: int) -> InvocationDetails:
        return InvocationDetails(_finish_reason(choice), num_tokens, self._inputs[index])

    def _tokens_of_stream(self, chunk: ChoiceChunk) -> list[InvocationToken]:
        """The chunk's tokens; text that no token of it completes goes to the next one."""
        self._text += chunk.text
        tokens = self._tokens(chunk)
        if not tokens:
            self._held_text += chunk.text
            return []
        held, self._held_text = self._held_text, ""
        first = msgspec.structs.replace(tokens[0], text=held + tokens[0].text)
        return [first, *tokens[1:]]

    def _tokens(self, chunk: ChoiceChunk) -> list[InvocationToken]:
        """The chunk's tokens; their texts together are its text."""
        ends = [max(0, offset - chunk.text_offset) for offset in chunk.token_offsets[1:]]
        starts = [0, *ends]
        ends.append(len(chunk.text))
        return [
            InvocationToken(
                token_id,
                chunk.text[start:end],
                max(chunk.logprobs[i].logprob, LEAST_LOGPROB) if chunk.logprobs else UNSET,
                True if token_id in self._special_ids else UNSET,
            )
            for i, (token_id, start, end) in enumerate(
                zip(chunk.token_ids, starts, ends, strict=False)
            )
        ]


def _finish_reason(choice: ChoiceChunk) -> InvocationFinishReason:
    if choice.finish_reason == "length":
        return "length"
    return "eos_token" if choice.stop_text is None else "stop_sequence"


def _line(line: InvocationLine) -> bytes:
    return _encoder.encode(line) + b"\n"
