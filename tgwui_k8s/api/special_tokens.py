"""The special tokens a model folder names beside its tokenizer.json.

tokenizer_config.json says which token is `bos_token`, `eos_token` and so on; older folders say it
in special_tokens_map.json. A token is a string or an object with its `content`.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tgwui_k8s.errors import BrokenModelError


@dataclass(frozen=True, kw_only=True)
class SpecialTokens:
    """What the folder says about special tokens, in addition to tokenizer.json."""

    names: dict[str, str] = field(default_factory=dict)
    """`bos_token` and so on: what chat templates may call them."""
    others: tuple[str, ...] = ()
    """Special tokens without a name of their own."""
    flagged: tuple[str, ...] = ()
    """Tokens that are declared special one by one, whatever tokenizer.json says of them."""
    add_bos: bool = False
    """The configuration promises a BOS token in front of every text."""


def read_special_tokens(folder: Path) -> SpecialTokens:
    """Read the folder's files; those that do not exist say nothing. Raises `BrokenModelError`."""
    config = read_json_object(folder / "tokenizer_config.json")
    sources = [config]
    if "added_tokens_decoder" not in config:
        sources.append(read_json_object(folder / "special_tokens_map.json"))
    names: dict[str, str] = {}
    others: list[str] = []
    flagged: list[str] = []
    for source in sources:
        names = {**_named(source), **names}
        others += _unnamed(source)
        flagged += _flagged(source)
    return SpecialTokens(
        names=names,
        others=tuple(others),
        flagged=tuple(flagged),
        add_bos=config.get("add_bos_token") is True,
    )


def read_json_object(path: Path) -> dict[str, Any]:
    """The object in a JSON file, {} where there is no such file. Raises `BrokenModelError`."""
    try:
        data = json.loads(path.read_bytes())
    except (FileNotFoundError, NotADirectoryError):
        return {}
    except (OSError, ValueError, RecursionError) as error:
        raise BrokenModelError(f"{path}: {error}") from error
    if not isinstance(data, dict):
        raise BrokenModelError(f"{path}: an object is expected, not {type(data).__name__}.")
    return data


def _named(source: dict[str, Any]) -> dict[str, str]:
    extra = source.get("extra_special_tokens")
    tokens = {name: token for name, token in source.items() if name.endswith("_token")}
    if isinstance(extra, dict):
        tokens |= extra
    return {name: content for name, token in tokens.items() if (content := _content(token))}


def _unnamed(source: dict[str, Any]) -> list[str]:
    tokens: list[Any] = []
    for key in ("additional_special_tokens", "extra_special_tokens"):
        values = source.get(key)
        if isinstance(values, list):
            tokens += values
    return [content for token in tokens if (content := _content(token))]


def _flagged(source: dict[str, Any]) -> list[str]:
    added = source.get("added_tokens_decoder")
    if not isinstance(added, dict):
        return []
    special = [token for token in added.values() if isinstance(token, dict)]
    return [content for token in special if token.get("special") and (content := _content(token))]


def _content(token: object) -> str | None:
    if isinstance(token, dict):
        token = token.get("content")
    return token if isinstance(token, str) else None
