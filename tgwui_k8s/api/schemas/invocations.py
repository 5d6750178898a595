"""SageMaker's `POST /invocations`: request and answer in the words of AWS's LMI containers.

https://docs.djl.ai/master/docs/serving/serving/docs/lmi/user_guides/lmi_input_output_schema.html
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

import msgspec
from msgspec import UNSET, UnsetType
from pydantic import Field

from tgwui_k8s.api.schemas.completions import MAX_PROMPTS
from tgwui_k8s.api.schemas.fields import INT32_MAX, TokenId, WireModel, honoured, refused
from tgwui_k8s.api.schemas.generation import MAX_STOP_TOKENS, StopStrings

DEFAULT_MAX_NEW_TOKENS = 30

Inputs = str | Annotated[list[str], Field(min_length=1, max_length=MAX_PROMPTS)]


class InvocationParameters(WireModel):
    """How to go on from the inputs. Bounds are those of completions."""

    max_new_tokens: int | None = honoured("Most tokens. Default 30.", ge=1, le=INT32_MAX)
    do_sample: bool | None = honoured(
        "False takes the likeliest token. Default: true where one of `temperature`, `top_k`, "
        "`top_p`, `min_p` and `typical_p` is given."
    )
    seed: int | None = honoured("Same seed, same tokens.")
    temperature: float | None = honoured("Divides the logits. Default 1.")
    top_k: int | None = honoured("Keeps the k likeliest tokens; 0 and -1 are off.")
    top_p: float | None = honoured("Keeps the likeliest tokens up to this probability.")
    min_p: float | None = honoured("Drops tokens less likely than this share of the likeliest.")
    typical_p: float | None = honoured("Locally typical sampling; 1 is off.")
    repetition_penalty: float | None = honoured("Tokens seen become less likely; 1 is off.")
    presence_penalty: float | None = honoured("Subtracted once per token generated before.")
    frequency_penalty: float | None = honoured("Subtracted per occurrence of a generated token.")
    no_repeat_ngram_size: int | None = honoured("No run of so many tokens comes twice; 0 is off.")
    stop_sequences: StopStrings | None = honoured("Strings that end the text, not part of it.")
    stop: StopStrings | None = honoured("The same under another name.")
    stop_token_ids: list[TokenId] | None = honoured(
        "Token ids that end the text.", max_length=MAX_STOP_TOKENS
    )
    ignore_eos_token: bool | None = honoured("Generate on after end-of-sequence tokens.")
    skip_special_tokens: bool | None = honoured("Special tokens have no text. Default true.")
    return_full_text: bool | None = honoured("`generated_text` begins with the inputs.")
    details: bool | None = honoured("Finish reason, counts and tokens beside the text.")

    # Known from LMI and TGI
    n: Any = refused("One text per input; send the input again.", neutral=(1,))
    best_of: Any = refused("One text per input.", neutral=(1,))
    num_beams: Any = refused("Beam search is not supported.", neutral=(1,))
    length_penalty: Any = refused("Beam search is not supported.", neutral=(1,))
    early_stopping: Any = refused("Beam search is not supported.", neutral=(False,))
    decoder_input_details: Any = refused("Send a completion with `echo`.", neutral=(False,))
    logprobs: Any = refused("`details` has log probabilities.")
    prompt_logprobs: Any = refused("Send a completion with `echo` and `logprobs`.")
    top_n_tokens: Any = refused("Send a completion with `logprobs`.", neutral=(0,))
    truncate: Any = refused("Send a completion with `truncation_length`.")
    watermark: Any = refused("There are no watermarks.", neutral=(False,))
    adapters: Any = refused("Adapters cannot be chosen by request.")
    include_stop_str_in_output: Any = refused("Stop strings are no output.", neutral=(False,))


class InvocationRequest(WireModel):
    """LMI's request: one text, or several that are answered in a list."""

    inputs: Inputs = honoured(
        "The prompt; several in an array, for an array of answers.", default=...
    )
    parameters: InvocationParameters | None = honoured("How to go on.")
    stream: bool | None = honoured("JSON lines, one per token; not with several inputs.")
    model: str | None = honoured("A served model's name.", max_length=1000)

    @property
    def prompts(self) -> list[str]:
        """All inputs, a single one too, as a list."""
        return [self.inputs] if isinstance(self.inputs, str) else self.inputs


# ------------------------------------------------------------------------------------ answers

InvocationFinishReason = Literal["length", "eos_token", "stop_sequence", "error"]


class InvocationToken(msgspec.Struct, frozen=True):
    """One generated token; -1 stands for an end that no token's text belongs to."""

    id: int
    text: str
    log_prob: float | UnsetType = UNSET
    special_token: bool | UnsetType = UNSET


class InvocationDetails(msgspec.Struct, frozen=True):
    """How a text ended."""

    finish_reason: InvocationFinishReason
    generated_tokens: int | None
    inputs: str | None
    tokens: list[InvocationToken] | UnsetType = UNSET


class InvocationAnswer(msgspec.Struct, frozen=True):
    """The answer to one input."""

    generated_text: str
    details: InvocationDetails | UnsetType = UNSET


class InvocationLine(msgspec.Struct, frozen=True):
    """One line of a stream; the last one has all members."""

    token: InvocationToken
    generated_text: str | UnsetType = UNSET
    details: InvocationDetails | UnsetType = UNSET
    error: dict[str, Any] | UnsetType = UNSET
