"""What dialects with a `generate` call have in common: one prompt in, text out.

Our completions are put into their words and their answers into ours. A field that the engine has no
word for is refused by name; nothing is dropped in silence.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

import msgspec

from tgwui_k8s.errors import InvalidRequestError, UnsupportedParameterError
from tgwui_k8s.gateway.call import Call
from tgwui_k8s.gateway.event_stream import DONE, frame

DEFAULT_MAX_TOKENS = 16

_SEEN_TO_HERE = frozenset({"model", "prompt", "stream", "stream_options", "timeout_s", "priority"})
_WITHOUT_EFFECT = frozenset({"user", "metadata", "store", "service_tier"})
_NEUTRAL: Mapping[str, tuple[Any, ...]] = {
    "best_of": (1,),
    "echo": (False,),
    "logprobs": (None,),
    "n": (1,),
    "return_token_ids": (False,),
}


class TextRequest:
    """A completion that a `generate` call can carry."""

    def __init__(self, call: Call, names: Mapping[str, str]) -> None:
        """`names`: our fields that the engine has a word for.

        Raises `InvalidRequestError` for what cannot be carried.
        """
        body = msgspec.json.decode(call.body, type=dict[str, Any])
        prompt = body.get("prompt")
        if not isinstance(prompt, str):
            raise InvalidRequestError(
                "The engine behind this model takes one prompt, as text.", param="prompt"
            )
        self.prompt = prompt
        self.parameters = {"max_tokens": DEFAULT_MAX_TOKENS}
        for name, value in body.items():
            if name in names and value is not None:
                self.parameters[name] = value
            elif name not in _SEEN_TO_HERE | _WITHOUT_EFFECT and not _is_neutral(name, value):
                raise UnsupportedParameterError(
                    f"Unsupported parameter: '{name[:100]}'. The engine behind this model has no "
                    "such option.",
                    param=name[:100],
                )

    def renamed(self, names: Mapping[str, str]) -> dict[str, Any]:
        """The parameters in the engine's words."""
        return {names[name]: value for name, value in self.parameters.items()}


def _is_neutral(name: str, value: Any) -> bool:
    return value is None or value in _NEUTRAL.get(name, ())


class CompletionText:
    """Writes our completions, whole or in chunks, with one id and one time."""

    def __init__(self, call: Call) -> None:
        self._head = {
            "id": f"cmpl-{call.request_id}",
            "object": "text_completion",
            "created": int(time.time()),
            "model": call.model or "",
        }
        options = call.asked.stream_options
        self._wants_usage = isinstance(options, dict) and options.get("include_usage") is True

    def chunk(self, text: str, finish_reason: str | None = None) -> bytes:
        """An event with some text."""
        usage = {"usage": None} if self._wants_usage else {}
        body = {**self._head, "choices": [_choice(text, finish_reason)], **usage}
        return frame(msgspec.json.encode(body))

    def end(self, usage: dict[str, int] | None) -> bytes:
        """The usage where it is known and wanted, and `[DONE]`."""
        last = frame(DONE)
        if not self._wants_usage or usage is None:
            return last
        return frame(msgspec.json.encode({**self._head, "choices": [], "usage": usage})) + last

    def whole(self, text: str, finish_reason: str, usage: dict[str, int] | None) -> bytes:
        """The answer in one piece."""
        body = {**self._head, "choices": [_choice(text, finish_reason)]}
        return msgspec.json.encode({**body, **({} if usage is None else {"usage": usage})})


def _choice(text: str, finish_reason: str | None) -> dict[str, Any]:
    return {"index": 0, "text": text, "logprobs": None, "finish_reason": finish_reason}


def usage_of(num_prompt_tokens: int, num_completion_tokens: int) -> dict[str, int]:
    """OpenAI's."""
    return {
        "prompt_tokens": num_prompt_tokens,
        "completion_tokens": num_completion_tokens,
        "total_tokens": num_prompt_tokens + num_completion_tokens,
    }


class StopCutter:
    """Takes stop strings off a text that comes in pieces: engines that leave them in it."""

    def __init__(self, stop: Any) -> None:
        strings = [stop] if isinstance(stop, str) else stop
        self._stop = [one for one in strings or () if isinstance(one, str) and one]
        self._held = ""
        self.has_stopped = False

    def feed(self, text: str, *, is_last: bool = False) -> str:
        """What can be given out: not what may still become a stop string."""
        if self.has_stopped:
            return ""
        self._held += text
        places = [place for one in self._stop if (place := self._held.find(one)) >= 0]
        if places:
            self.has_stopped = True
            return self._held[: min(places)]
        keep = 0 if is_last else self._num_held()
        given, self._held = (
            self._held[: len(self._held) - keep],
            self._held[len(self._held) - keep :],
        )
        return given

    def _num_held(self) -> int:
        longest = max((len(one) - 1 for one in self._stop), default=0)
        for length in range(min(longest, len(self._held)), 0, -1):
            if any(one.startswith(self._held[-length:]) for one in self._stop):
                return length
        return 0


def error_envelope(status: int, message: str) -> bytes:
    """An engine's error in OpenAI's envelope."""
    kind = "invalid_request_error" if status < 500 else "server_error"
    error = {"message": message[:1000], "type": kind, "param": None, "code": None}
    return msgspec.json.encode({"error": error})
