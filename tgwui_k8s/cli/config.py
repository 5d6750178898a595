"""`tgwui-k8s config`: the settings as they will be, and where each came from."""

from __future__ import annotations

import json
from typing import Any

import rich_click as click

from tgwui_k8s.cli.options import show_warnings, with_settings
from tgwui_k8s.cli.tables import print_table
from tgwui_k8s.config import Settings
from tgwui_k8s.setting_field import SettingField, setting_fields
from tgwui_k8s.settings import Provenance


@click.command()
@click.option("--json", "form", flag_value="json", help="As JSON with sources.")
@click.option("--yaml", "form", flag_value="yaml", help="As a file for --config; no secrets in it.")
@with_settings("model", "engine", "server", "webui", "gateway", "observability")
def config(settings: Settings, provenance: Provenance, form: str | None) -> None:
    """Print the effective settings and where each came from.

    \b
    Examples:
      tgwui-k8s config --port 8080
      TGWUI_PORT=8080 tgwui-k8s config --yaml > settings.yaml
    """
    show_warnings(provenance)
    values = {
        field: getattr(getattr(settings, field.section), field.name)
        for field in setting_fields().values()
    }
    if form == "json":
        click.echo(json.dumps(_as_json(values, provenance), indent=2))
    elif form == "yaml":
        click.echo(_as_yaml(values, provenance), nl=False)
    else:
        rows = (
            (field.key, field.format(value), provenance.sources[field.name], field.variable)
            for field, value in values.items()
        )
        print_table(("setting", "value", "source", "variable"), rows)


def _as_json(values: dict[SettingField, Any], provenance: Provenance) -> dict[str, Any]:
    return {
        field.key: {
            "value": field.format(value) if field.secret else value,
            "source": provenance.sources[field.name],
        }
        for field, value in values.items()
    }


def _as_yaml(values: dict[SettingField, Any], provenance: Provenance) -> str:
    """One `key: value` a line; settings without a value, and secrets, as comments."""
    lines = []
    for field, value in values.items():
        if field.secret or value is None or value == ():
            text = f"# {field.key}: {field.format(value)}".rstrip()
        else:  # JSON's values are YAML's
            text = f"{field.key}: {json.dumps(value, ensure_ascii=False)}"
        lines.append(f"{text}  # {provenance.sources[field.name]}\n")
    return "".join(lines)
