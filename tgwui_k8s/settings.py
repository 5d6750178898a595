"""Where settings come from: defaults < YAML file < environment < flags.

* The file (`--config FILE` or `TGWUI_CONFIG`) is one flat mapping with the flags' names as keys
  (`kv-cache-memory: 4GiB`), so that a name found anywhere can be used everywhere. An unknown or
  repeated key is an error.
* A variable `TGWUI_<NAME>` sets one value; a list has one item a line, or commas between its
  items; an empty variable counts as unset. An unknown `TGWUI_` variable is a warning and no
  error, because Kubernetes itself sets such variables for a Service whose name begins with
  "tgwui" (service links); those are recognised and left alone.
* Below these rank the variables that SageMaker's containers know (`sagemaker_environment`).
* Flags win. Keys of clients cannot be flags: arguments show in `ps`.

Every mistake is a `UsageError` of one line that names the source.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import yaml

from tgwui_k8s.config import SECTIONS, Settings
from tgwui_k8s.errors import UsageError
from tgwui_k8s.sagemaker_environment import read_sagemaker_environment
from tgwui_k8s.setting_field import VARIABLE_PREFIX, nearest, setting_fields

Source = Literal["default", "file", "environment", "flag"]

CONFIG_VARIABLE = "TGWUI_CONFIG"

_SERVICE_LINK = re.compile(
    r"TGWUI_(.+_)?(SERVICE_HOST|SERVICE_PORT(_[A-Z0-9_]+)?|PORT_\d+_(TCP|UDP|SCTP)(_[A-Z]+)?)"
)
_SERVICE_LINK_ADDRESS = re.compile(r"(tcp|udp|sctp)://.*", re.DOTALL)
_LARGEST_FILE = 1024 * 1024


@dataclass(frozen=True)
class Provenance:
    """Where each setting came from, and what the user should be told about the sources."""

    sources: Mapping[str, Source]
    """By field name."""
    warnings: tuple[str, ...] = ()


def load_settings(
    flags: Mapping[str, Any],
    environ: Mapping[str, str],
    config_file: str | Path | None = None,
) -> tuple[Settings, Provenance]:
    """Merge all sources into settings.

    `flags` maps field names (`max_num_seqs`) to text or to values of the right type; a flag that
    was not given is left out. `config_file` beats `TGWUI_CONFIG`. Raises `UsageError`.
    """
    config_file = config_file or environ.get(CONFIG_VARIABLE) or None
    values: dict[str, Any] = {}
    sources: dict[str, Source] = dict.fromkeys(setting_fields(), "default")
    from_environment, warnings = _read_environment(environ)
    from_sagemaker, sagemaker_warnings = _read_sagemaker(environ)
    from_file = _read_file(Path(config_file)) if config_file is not None else {}
    merged: tuple[tuple[Source, dict[str, Any]], ...] = (
        ("file", from_file),
        ("environment", from_sagemaker | from_environment),
        ("flag", _read_flags(flags)),
    )
    for source, found in merged:
        values.update(found)
        sources.update(dict.fromkeys(found, source))
    settings = _build(values)
    check_settings(settings)
    return settings, Provenance(sources, warnings + sagemaker_warnings)


def check_settings(settings: Settings) -> None:
    """Refuse settings that contradict one another. Raises `UsageError`."""
    model, engine, server = settings.model, settings.engine, settings.server
    if not model.model:
        raise UsageError("--model is empty: name a folder, a file or 'demo'")
    loader_options(model.loader_option)
    _refuse_repetition("--served-model-name", model.served_model_name)
    if model.load_in_4bit and model.load_in_8bit:
        raise UsageError("--load-in-4bit and --load-in-8bit exclude each other")
    budget = engine.max_num_batched_tokens
    if budget is not None and budget < engine.max_num_seqs:
        raise UsageError(
            f"--max-num-batched-tokens {budget} is less than --max-num-seqs "
            f"{engine.max_num_seqs}: a step must have room for one token of every sequence"
        )
    cache, limit = engine.kv_cache_memory, engine.memory_limit
    if cache is not None and limit is not None and cache >= limit:
        raise UsageError("--kv-cache-memory leaves nothing of --memory-limit for the weights")
    _check_prefix("--root-path", server.root_path)
    _check_prefix("--webui-root-path", settings.webui.webui_root_path)
    _check_url("--webui-api-url", settings.webui.webui_api_url)
    if "*" in server.cors_origin and len(server.cors_origin) > 1:
        raise UsageError("--cors-origin '*' allows every origin: name no other beside it")


def loader_options(pairs: tuple[str, ...]) -> dict[str, str]:
    """`("threads=4",)` as `{"threads": "4"}`. Raises `UsageError` for another form."""
    options: dict[str, str] = {}
    for pair in pairs:
        key, separator, value = pair.partition("=")
        if not key or not separator:
            raise UsageError(f"--loader-option '{pair[:100]}' is not of the form KEY=VALUE")
        if key in options:
            raise UsageError(f"--loader-option '{key}' is given twice")
        options[key] = value
    return options


def _check_prefix(origin: str, prefix: str) -> None:
    if prefix and (prefix[0] != "/" or prefix[-1] == "/"):
        raise UsageError(f"{origin} begins with '/' and does not end with it, as in '/llm'")


def _check_url(origin: str, url: str) -> None:
    if url and (not re.fullmatch(r"https?://[^\s/]\S*", url) or url.endswith(("/", "/v1"))):
        raise UsageError(f"{origin} is an address without '/v1', as in 'https://llm.example.com'")


def _read_flags(flags: Mapping[str, Any]) -> dict[str, Any]:
    found = {}
    for name, value in flags.items():
        field = setting_fields().get(name)
        if field is None:
            raise UsageError(f"unknown setting '{name}'{nearest(name, setting_fields())}")
        found[name] = field.default if value is None else field.convert(value, field.flag)
    return found


def _read_environment(environ: Mapping[str, str]) -> tuple[dict[str, Any], tuple[str, ...]]:
    by_variable = {field.variable: field for field in setting_fields().values()}
    found: dict[str, Any] = {}
    warnings = []
    for variable, text in sorted(environ.items()):
        if not variable.startswith(VARIABLE_PREFIX) or variable == CONFIG_VARIABLE or not text:
            continue
        is_address = variable.endswith("_PORT") and _SERVICE_LINK_ADDRESS.fullmatch(text)
        if field := by_variable.get(variable):
            if is_address:
                warnings.append(
                    f"{variable} holds a Kubernetes service link ({text[:60]}) and is ignored; "
                    "set enableServiceLinks: false in the pod, or rename the Service"
                )
            else:
                found[field.name] = field.convert(text, variable)
        elif not is_address and not _SERVICE_LINK.fullmatch(variable):
            hint = nearest(variable, by_variable)
            warnings.append(f"unknown environment variable {variable} is ignored{hint}")
    return found, tuple(warnings)


def _read_sagemaker(environ: Mapping[str, str]) -> tuple[dict[str, Any], tuple[str, ...]]:
    found, warnings = read_sagemaker_environment(environ)
    values = {
        name: setting_fields()[name].convert(text, variable)
        for name, (variable, text) in found.items()
    }
    return values, warnings


def _read_file(path: Path) -> dict[str, Any]:
    by_key = {field.key: field for field in setting_fields().values()}
    found = {}
    for key, value in _read_mapping(path).items():
        field = by_key.get(key)
        if field is None:
            raise UsageError(f"{path}: unknown key '{key[:100]}'{_nearest_key(key)}")
        if value is not None:
            found[field.name] = field.convert(value, f"{path}: {key}")
    return found


def _nearest_key(key: str) -> str:
    spellings = {
        spelling: field.key
        for field in setting_fields().values()
        for spelling in (field.key, *field.aliases)
    }
    kebab = key.replace("_", "-").lower()
    exact = spellings.get(kebab)
    return f"; did you mean '{exact}'?" if exact else nearest(kebab, spellings.values())


def _read_mapping(path: Path) -> dict[str, Any]:
    try:
        with path.open("rb") as file:
            text = file.read(_LARGEST_FILE + 1)
    except OSError as error:
        raise UsageError(f"cannot read the configuration file {path}: {error.strerror}") from None
    if len(text) > _LARGEST_FILE:
        raise UsageError(f"{path} is larger than 1 MiB: not a configuration file")
    try:
        node = yaml.compose(text, Loader=yaml.SafeLoader)
        mapping = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise UsageError(f"{path} is not valid YAML: {' '.join(str(error).split())}") from None
    if mapping is None:
        return {}
    if not isinstance(node, yaml.MappingNode) or not isinstance(mapping, dict):
        raise UsageError(f"{path} must hold one mapping of settings, such as 'port: 5000'")
    _refuse_repetition(f"{path}:", tuple(str(key.value) for key, _ in node.value))
    return {str(key): value for key, value in mapping.items()}


def _refuse_repetition(origin: str, items: tuple[str, ...]) -> None:
    for item in items:
        if items.count(item) > 1:
            raise UsageError(f"{origin} '{item[:100]}' is given twice")


def _build(values: Mapping[str, Any]) -> Settings:
    sections: dict[str, Any] = {}
    for section, section_type in SECTIONS.items():
        mine = {name: values[name] for name in values if setting_fields()[name].section == section}
        sections[section] = section_type(**mine)
    return Settings(**sections)
