"""What a sentence-transformers folder says a text goes through, read from its small JSON files.

modules.json                      the modules in order: [{"type", "path"}, …]
sentence_bert_config.json         beside the Transformers model: max_seq_length
1_Pooling/config.json             how hidden states become one vector
config_sentence_transformers.json a prompt before every text
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, cast, get_args

from tgwui_k8s.errors import BrokenModelError, UnsupportedModelError
from tgwui_k8s.storage.model_files import read_json

Pooling = Literal["mean", "max", "cls", "lasttoken"]

_FLAGS: dict[str, Pooling] = {
    "pooling_mode_cls_token": "cls",
    "pooling_mode_mean_tokens": "mean",
    "pooling_mode_max_tokens": "max",
    "pooling_mode_lasttoken": "lasttoken",
}


@dataclass(frozen=True)
class SentenceModules:
    """A Transformers model, a pooling, and perhaps a normalisation."""

    transformer: Path
    """The folder of the model itself."""
    pooling: Pooling
    normalizes: bool
    max_length: int | None
    """In tokens; None: what the model was trained for."""


def read_modules(folder: Path) -> SentenceModules:
    """What the folder says. Raises `BrokenModelError`, or `UnsupportedModelError` for more."""
    kinds: dict[str, Path] = {}
    for module in _read_list(folder / "modules.json"):
        kind = str(module.get("type", "")).rpartition(".")[2]
        if kind not in ("Transformer", "Pooling", "Normalize") or kind in kinds:
            raise UnsupportedModelError(
                f"{folder.name}: modules.json has a '{kind[:100]}', and this loader runs one "
                "Transformer, one Pooling and one Normalize"
            )
        kinds[kind] = folder / str(module.get("path", ""))
    if "Transformer" not in kinds or "Pooling" not in kinds:
        raise UnsupportedModelError(f"{folder.name}: modules.json names no Transformer and Pooling")
    _refuse_prompts(folder)
    settings = _read_if_there(kinds["Transformer"] / "sentence_bert_config.json")
    if settings.get("do_lower_case"):
        raise UnsupportedModelError(f"{folder.name}: do_lower_case is not supported")
    max_length = settings.get("max_seq_length")
    return SentenceModules(
        transformer=kinds["Transformer"],
        pooling=_pooling(kinds["Pooling"] / "config.json"),
        normalizes="Normalize" in kinds,
        max_length=max_length if isinstance(max_length, int) else None,
    )


def _pooling(path: Path) -> Pooling:
    config = read_json(path)
    named = config.get("pooling_mode")
    modes = [named] if named else [_FLAGS.get(key, key) for key in config if _is_set(config, key)]
    if len(modes) != 1 or modes[0] not in get_args(Pooling):
        raise UnsupportedModelError(
            f"{path} asks for the pooling {modes}; supported is one of {get_args(Pooling)}"
        )
    return cast("Pooling", modes[0])


def _is_set(config: dict[str, Any], key: str) -> bool:
    return key.startswith("pooling_mode_") and config[key] is True


def _refuse_prompts(folder: Path) -> None:
    config = _read_if_there(folder / "config_sentence_transformers.json")
    name = config.get("default_prompt_name")
    prompts = config.get("prompts")
    if name is not None and isinstance(prompts, dict) and prompts.get(name):
        raise UnsupportedModelError(
            f"{folder.name} puts a prompt ('{name}') before every text, which this loader does not"
        )


def _read_list(path: Path) -> list[dict[str, Any]]:
    try:
        content = json.loads(path.read_bytes())
    except (OSError, ValueError) as error:
        raise BrokenModelError(f"{path} cannot be read: {error}") from None
    if not isinstance(content, list) or not all(isinstance(item, dict) for item in content):
        raise BrokenModelError(f"{path} holds no list of modules")
    return content


def _read_if_there(path: Path) -> dict[str, Any]:
    return read_json(path) if path.is_file() else {}
