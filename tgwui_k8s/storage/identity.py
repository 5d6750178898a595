"""What a model folder says about itself that every loader needs: end tokens and a fingerprint."""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from typing import Any

from tgwui_k8s.errors import BrokenModelError
from tgwui_k8s.storage.model_files import read_json

_HEAD_BYTES = 1 << 20
"""Covers the header of nearly every safetensors file: names, types and shapes of all tensors."""
_NUM_SAMPLES = 64
_SAMPLE_BYTES = 1024


def eos_token_ids(folder: Path) -> tuple[int, ...]:
    """Tokens that end an answer.

    Those of `generation_config.json`, else of `config.json`, and the tokenizer's own: chat models
    exist whose configuration still names the base model's. Raises `BrokenModelError`.
    """
    found: list[int] = []
    for name in ("generation_config.json", "config.json"):
        if not found and (folder / name).is_file():
            content = read_json(folder / name)
            nested = content.get("text_config")
            found = _token_ids(content) or _token_ids(nested if isinstance(nested, dict) else {})
    return tuple(dict.fromkeys([*found, *_tokenizer_eos_ids(folder)]))


def _token_ids(content: dict[str, Any]) -> list[int]:
    value = content.get("eos_token_id")
    values = value if isinstance(value, list) else [value]
    return [token_id for token_id in values if isinstance(token_id, int)]


def _tokenizer_eos_ids(folder: Path) -> list[int]:
    if not (folder / "tokenizer_config.json").is_file():
        return []
    config = read_json(folder / "tokenizer_config.json")
    token = config.get("eos_token")
    token = token.get("content") if isinstance(token, dict) else token
    decoder = config.get("added_tokens_decoder")
    if isinstance(decoder, dict):
        added = [{"id": int(key), **value} for key, value in decoder.items() if key.isdecimal()]
    else:
        added = _added_tokens(folder / "tokenizer.json")
    return [entry["id"] for entry in added if entry.get("content") == token]


def _added_tokens(path: Path) -> list[dict[str, Any]]:
    """The special tokens of a tokenizer.json, which stand before its megabytes of vocabulary."""
    if not path.is_file():
        return []
    with path.open("rb") as file, suppress(ValueError):
        return _decode_added_tokens(file.read(_HEAD_BYTES))
    try:
        return _decode_added_tokens(path.read_bytes())
    except ValueError as error:
        raise BrokenModelError(f"{path} is no valid JSON") from error


def _decode_added_tokens(beginning: bytes) -> list[dict[str, Any]]:
    """The list out of a file's beginning; raises `ValueError` where it is cut off."""
    text = beginning.decode("utf-8", errors="ignore")
    found = re.search(r'"added_tokens"\s*:\s*', text)
    added = json.JSONDecoder().raw_decode(text, found.end())[0] if found else []
    return [entry for entry in added if isinstance(entry, dict) and "id" in entry]


def fingerprint(files: Iterable[Path], config: dict[str, Any], numerics: Iterable[str]) -> str:
    """A short name for weights, configuration and numerics; `system_fingerprint` in answers.

    Of every weight file its name, size, beginning (a safetensors header) and evenly spread
    samples count: reading all bytes would take as long as loading them, and a fine-tuned model may
    differ in its middle layers alone. `numerics` are words for whatever else decides the logits:
    dtype, loader, library version, kind of device. Raises `BrokenModelError`.
    """
    digest = hashlib.blake2b(digest_size=8)
    digest.update(json.dumps(config, sort_keys=True, default=str).encode())
    for word in numerics:
        digest.update(b"\0" + word.encode())
    for file in sorted(files):
        try:
            with file.open("rb", buffering=0) as content:
                size = content.seek(0, os.SEEK_END)
                digest.update(f"\0{file.name}\0{size}\0".encode())
                content.seek(0)
                digest.update(content.read(_HEAD_BYTES))
                for number in range(1, _NUM_SAMPLES + 1):
                    content.seek(max(0, size * number // _NUM_SAMPLES - _SAMPLE_BYTES))
                    digest.update(content.read(_SAMPLE_BYTES))
        except OSError as error:
            raise BrokenModelError(f"cannot read {file}: {error.strerror}") from error
    return f"fp_{digest.hexdigest()}"
