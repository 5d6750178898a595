"""The settings of a model that is loaded over HTTP: what its client may choose, and what not."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields, replace
from typing import Any

from tgwui_k8s.config import ModelSettings, Settings
from tgwui_k8s.errors import InvalidRequestError, UsageError
from tgwui_k8s.setting_field import nearest, setting_fields
from tgwui_k8s.settings import check_settings

OPERATOR_ONLY = frozenset({"model_dir", "trust_remote_code", "chat_template", "lora", "lora_dir"})
"""They decide which files are read and whose code runs: the operator's, at the start."""

ALLOWED = frozenset(
    {field.name for field in fields(ModelSettings)} - OPERATOR_ONLY - {"model"}
    | {
        "max_num_seqs",
        "max_num_batched_tokens",
        "max_waiting_requests",
        "kv_cache_memory",
        "memory_limit",
        "num_threads",
    }
)
"""What `args` of `/v1/internal/model/load` may set."""


def settings_for_model(start: Settings, name: str, args: Mapping[str, Any]) -> Settings:
    """The server's settings with another model.

    What was said of the first model at the start (its loader, type, context, served name) is not
    true of the next one; what was said of the machine is. Raises `InvalidRequestError`, naming the
    argument.
    """
    chosen = {_field_name(key): value for key, value in args.items()}
    converted = {key: _converted(key, value) for key, value in chosen.items() if value is not None}
    model = ModelSettings(
        model=name,
        model_dir=start.model.model_dir,
        lora_dir=start.model.lora_dir,
        device=start.model.device,
        prefetch=start.model.prefetch,
        trust_remote_code=start.model.trust_remote_code,
    )
    of_model = {field.name for field in fields(ModelSettings)}
    settings = replace(
        start,
        model=replace(model, **{key: v for key, v in converted.items() if key in of_model}),
        engine=replace(
            start.engine, **{key: v for key, v in converted.items() if key not in of_model}
        ),
    )
    try:
        check_settings(settings)
    except UsageError as error:
        raise InvalidRequestError(str(error), param="args") from error
    return settings


def _field_name(key: str) -> str:
    name = key.replace("-", "_")
    if name in OPERATOR_ONLY:
        raise InvalidRequestError(
            f"'{name}' can only be set when the server is started.",
            param=f"args.{name}",
            code="unsupported_parameter",
        )
    if name not in ALLOWED:
        raise InvalidRequestError(
            f"Unknown parameter: 'args.{key[:100]}'{nearest(name, ALLOWED)}.",
            param=f"args.{key[:100]}",
            code="unknown_parameter",
        )
    return name


def _converted(name: str, value: Any) -> Any:
    try:
        return setting_fields()[name].convert(value, name)
    except UsageError as error:
        raise InvalidRequestError(
            f"Invalid 'args.{name}': {error}.", param=f"args.{name}", code="invalid_value"
        ) from error
