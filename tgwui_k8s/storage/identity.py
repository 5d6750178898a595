"""What a model folder says about itself that every loader needs: end tokens and a fingerprint."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from tgwui_k8s.storage.model_files import read_json

_SAMPLE_BYTES = 64 * 1024


def eos_token_ids(folder: Path) -> tuple[int, ...]:
    """Tokens that end an answer, by `generation_config.json`, else by `config.json`."""
    for name in ("generation_config.json", "config.json"):
        if (folder / name).is_file():
            found = read_json(folder / name).get("eos_token_id")
            if isinstance(found, int):
                return (found,)
            if isinstance(found, list) and found:
                return tuple(int(token_id) for token_id in found)
    return ()


def fingerprint(files: Iterable[Path], config: dict[str, Any], numerics: Iterable[str]) -> str:
    """A short name for weights, configuration and numerics; `system_fingerprint` in answers.

    Of every weight file its name, size, beginning (a safetensors header) and end count: reading
    all bytes would take as long as loading them. `numerics` are words for whatever else decides
    the logits: dtype, loader, library version, kind of device.
    """
    digest = hashlib.blake2b(digest_size=8)
    digest.update(json.dumps(config, sort_keys=True, default=str).encode())
    for word in numerics:
        digest.update(b"\0" + word.encode())
    for file in sorted(files):
        size = file.stat().st_size
        digest.update(f"\0{file.name}\0{size}\0".encode())
        with file.open("rb") as content:
            digest.update(content.read(_SAMPLE_BYTES))
            content.seek(max(0, size - _SAMPLE_BYTES))
            digest.update(content.read(_SAMPLE_BYTES))
    return f"fp_{digest.hexdigest()}"
