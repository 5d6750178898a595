"""The model's chat template: messages in, prompt text out; Jinja in a sandbox.

(Interface first; the implementation follows in the next commit.)
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any


class ChatTemplate:
    """A compiled template. Safe to use from several threads; `render` is CPU work."""

    @classmethod
    def load(
        cls, folder: Path, special_tokens: Mapping[str, str], override: Path | None = None
    ) -> ChatTemplate | None:
        """`override`, else the folder's template; None where it has none.

        Raises `BrokenModelError` for one that does not compile, `UsageError` for the override.
        """
        raise NotImplementedError

    def render(
        self,
        messages: list[dict[str, Any]],
        *,
        tools: list[dict[str, Any]] | None = None,
        add_generation_prompt: bool = True,
        continue_final_message: bool = False,
        template_kwargs: Mapping[str, Any] | None = None,
    ) -> str:
        """The prompt. `continue_final_message` ends it right after the last message's content.

        Raises `InvalidRequestError` with `param="messages"` when the template refuses or exceeds
        its limits, `param="chat_template_kwargs.<name>"` for a reserved name.
        """
        raise NotImplementedError
