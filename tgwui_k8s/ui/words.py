"""What the page says, in English and Chinese: one file a language, the same keys in each.

Python and the browser's scripts use the same files. Which language a person gets is up to the
browser.
"""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path

import yaml

LANGUAGES = ("en", "zh")
_FOLDER = Path(__file__).parent / "words"


@lru_cache(maxsize=len(LANGUAGES))
def words(language: str) -> dict[str, str]:
    """Key to text; of a parameter's meaning in English there is none, the API's schema has it."""
    content = (_FOLDER / f"{language}.yaml").read_text(encoding="utf-8")
    return dict(yaml.safe_load(content))


def words_for(accept_language: str) -> tuple[str, dict[str, str]]:
    """The first language of an `Accept-Language` header that we speak, and its words."""
    for wanted in accept_language.split(","):
        language = wanted.split(";")[0].strip().split("-")[0].lower()
        if language in LANGUAGES:
            return language, words(language)
    return "en", words("en")
