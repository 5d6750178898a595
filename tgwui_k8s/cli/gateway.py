"""`tgwui-k8s gateway`: one address for many engines, until a signal."""

from __future__ import annotations

import rich_click as click

from tgwui_k8s.cli.options import option_name, with_settings
from tgwui_k8s.config import Settings
from tgwui_k8s.settings import Provenance


def _own_name(spelling: str) -> str:
    """Here, `--port` is the gateway's."""
    name = option_name(spelling)
    return "gateway-port" if name == "port" else name


@click.command(context_settings={"token_normalize_func": _own_name})
@with_settings(
    "gateway",
    "host",
    "drain_timeout",
    "max_request_seconds",
    "max_body_bytes",
    "sse_keep_alive_seconds",
    "api_key_file",
    "admin_key_file",
    "cors_origin",
    "log_level",
    "log_format",
)
@click.pass_context
def gateway(ctx: click.Context, settings: Settings, provenance: Provenance) -> None:
    """Serve many engines under one address.

    \b
    Examples:
      tgwui-k8s gateway --endpoint http://10.0.0.1:5000 --endpoint http://10.0.0.2:5000
      tgwui-k8s gateway --endpoint-dns http://engines:5000
      tgwui-k8s gateway --endpoint-selector app.kubernetes.io/component=engine --host 0.0.0.0

    Every request goes to the engine that suits it best; where one fails, another takes over, in
    the middle of a stream, too. SIGTERM lets running requests finish. Exit codes: 0 stopped by a
    signal, 2 wrong settings, 3 could not bind the port.
    """
    # Imported here: the other commands have no use for it.
    from tgwui_k8s.gateway.server import run_gateway

    ctx.exit(run_gateway(settings, provenance.warnings))
