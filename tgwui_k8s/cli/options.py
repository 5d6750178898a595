"""Options made from the settings' dataclasses, and the settings that come of them.

An option has one name in the help; aliases, and names written with underscores, are translated
before click looks them up.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Callable
from typing import Any

import rich_click as click
from click.core import ParameterSource

from tgwui_k8s.errors import UsageError
from tgwui_k8s.setting_field import SettingField, setting_fields
from tgwui_k8s.settings import CONFIG_VARIABLE, Provenance, load_settings

ANY_ADDRESS = "0.0.0.0"  # noqa: S104 - what --listen asks for

_PANELS = {
    "model": "Model",
    "engine": "Engine",
    "neuron": "AWS Neuron",
    "llama_cpp": "llama.cpp (GGUF)",
    "server": "Server",
    "webui": "Web page",
    "gateway": "Gateway",
    "observability": "Logs and metrics",
}

_ONE_AFTER_THE_OTHER = (
    "layers are not spread over cards one after the other; use --tensor-parallel-size, or "
    "--loader vLLM with --loader-option pipeline_parallel_size=N"
)
_NOT_HERE = {"auto-devices": _ONE_AFTER_THE_OTHER, "device-map": _ONE_AFTER_THE_OTHER}
"""Flags of text-generation-webui and Transformers that are refused, and what to do instead."""

Command = Callable[..., Any]


def option_name(spelling: str) -> str:
    """The name of an option, without dashes in front, for any spelling of it."""
    kebab = spelling.replace("_", "-")
    return _aliases().get(kebab, kebab)


@functools.lru_cache(maxsize=1)
def _aliases() -> dict[str, str]:
    return {alias: field.key for field in setting_fields().values() for alias in field.aliases}


class SettingOption(click.RichOption):
    """One setting as an option. Its variable is shown in the help and read by `load_settings`."""

    def resolve_envvar_value(self, ctx: click.Context) -> None:
        """Nothing: variables are merged, converted and reported in one place for all sources."""


def with_settings(*wanted: str) -> Callable[[Command], Command]:
    """Give a command options for whole sections or single settings, by name.

    The command is called with `settings` and `provenance` in place of the options.
    """
    chosen = [
        field
        for field in setting_fields().values()
        if not field.secret and {field.section, field.name} & set(wanted)
    ]
    has_server = "server" in wanted

    def decorate(command: Command) -> Command:
        @click.pass_context
        @functools.wraps(command)
        def run(ctx: click.Context, /, config_file: str | None, **options: Any) -> Any:
            flags = {
                field.name: value
                for field in chosen
                for value in [options.pop(field.name)]
                if _is_given(ctx, field.name)
            }
            if has_server:
                _apply_upstream_flags(flags, options)
            settings, provenance = load_settings(flags, os.environ, config_file)
            return command(settings=settings, provenance=provenance, **options)

        decorated: Command = run
        if has_server:
            decorated = _upstream_flags(decorated)
        for field in reversed(chosen):
            decorated = _option_for(field)(decorated)
        return _config_option(decorated)

    return decorate


def show_warnings(provenance: Provenance) -> None:
    """Say on stderr what the sources of the settings deserve a warning for."""
    for warning in provenance.warnings:
        click.secho(f"Warning: {warning}", fg="yellow", err=True)


def _option_for(field: SettingField) -> Callable[[Command], Command]:
    is_switch = field.kind == "boolean"
    flag = f"{field.flag}/--no-{field.key}" if is_switch else field.flag
    return click.option(
        flag,
        field.name,
        cls=SettingOption,
        type=_type_of(field),
        multiple=field.kind == "list",
        metavar=None if is_switch or field.kind == "choice" else field.metavar,
        default=_default_of(field),
        show_default=True,
        envvar=field.variable,
        show_envvar=True,
        help=field.help + _also(field),
        panel=_PANELS[field.section],
    )


def _also(field: SettingField) -> str:
    spellings = " or ".join(f"--{alias}" for alias in field.aliases)
    return f" Also {spellings}." if spellings else ""


def _type_of(field: SettingField) -> Any:
    """Text for most: `load_settings` converts values of all sources alike."""
    if field.kind == "boolean":
        return None
    return click.Choice(field.choices) if field.kind == "choice" else click.STRING


def _default_of(field: SettingField) -> Any:
    if field.kind in ("boolean", "list"):
        return field.default
    return field.format(field.default) or None


def _config_option(command: Command) -> Command:
    return click.option(
        "--config",
        "config_file",
        metavar="FILE",
        envvar=CONFIG_VARIABLE,
        show_envvar=True,
        help="YAML file with settings; keys are the flags' names without dashes in front.",
    )(command)


def _upstream_flags(command: Command) -> Command:
    """text-generation-webui's switches that name no setting of ours."""
    listen = click.option(
        "--listen",
        is_flag=True,
        help=f"text-generation-webui's: the same as --host {ANY_ADDRESS}.",
        panel=_PANELS["server"],
    )
    api = click.option("--api", is_flag=True, hidden=True, help="Always on here.")
    for name, advice in _NOT_HERE.items():
        command = _refused(name, advice)(command)
    return listen(api(command))


def _refused(name: str, advice: str) -> Callable[[Command], Command]:
    def refuse(ctx: click.Context, parameter: click.Parameter, value: str | None) -> None:
        if value is not None:
            raise UsageError(f"--{name}: {advice}")

    return click.option(
        f"--{name}", is_flag=False, flag_value="", hidden=True, expose_value=False, callback=refuse
    )


def _apply_upstream_flags(flags: dict[str, Any], options: dict[str, Any]) -> None:
    options.pop("api")
    if options.pop("listen"):
        if flags.get("host", ANY_ADDRESS) != ANY_ADDRESS:
            raise UsageError(f"--listen means --host {ANY_ADDRESS}; --host says {flags['host']}")
        flags["host"] = ANY_ADDRESS


def _is_given(ctx: click.Context, name: str) -> bool:
    return ctx.get_parameter_source(name) is ParameterSource.COMMANDLINE
