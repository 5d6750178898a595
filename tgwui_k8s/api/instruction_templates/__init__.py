"""Instruction templates by text-generation-webui's names, for models without a template.

The names are upstream's, the templates our own. They write no beginning-of-sequence token at the
start: the tokenizer adds its own, as it does to any text.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from tgwui_k8s.api.chat_template import DEFAULT, ChatTemplate
from tgwui_k8s.errors import InvalidRequestError

_FOLDER = Path(__file__).parent


def instruction_template_names() -> list[str]:
    """All names, sorted."""
    return sorted(path.stem for path in _FOLDER.glob("*.jinja"))


def instruction_template(name: str, special_tokens: Mapping[str, str]) -> ChatTemplate:
    """The template of this name. Raises `InvalidRequestError` for a name that is none."""
    names = instruction_template_names()
    if name not in names:
        shown = name[:100].encode(errors="replace").decode()
        raise InvalidRequestError(
            f"There is no instruction template '{shown}'. The templates are: {', '.join(names)}.",
            param="instruction_template",
            code="invalid_value",
        )
    source = (_FOLDER / f"{name}.jinja").read_text("utf-8")
    return ChatTemplate({DEFAULT: source}, special_tokens)
