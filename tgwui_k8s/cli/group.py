"""The command group, and how errors become one line and an exit code."""

from __future__ import annotations

from importlib import import_module

import rich_click as click

from tgwui_k8s.cli.options import option_name
from tgwui_k8s.errors import RequestError, StartupError, UsageError

COMMANDS = (
    *("config", "gateway", "generate", "loaders", "models", "neuron"),
    *("serve", "upstream", "version"),
)
"""Each is a function and the file of its name here, imported when it is called or listed."""

EXIT_USAGE = 2
EXIT_CANNOT_START = 3


class Group(click.RichGroup):
    """Imports the chosen command only: a server starts sooner without the others.

    Turns this package's errors into a line on stderr and the exit code that belongs to it.
    """

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Their names, sorted."""
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """The command; None where there is none of the name."""
        if cmd_name not in COMMANDS:
            return None
        command: click.Command = getattr(import_module(f"tgwui_k8s.cli.{cmd_name}"), cmd_name)
        return command

    def invoke(self, ctx: click.Context) -> object:
        """Run the chosen command."""
        try:
            return super().invoke(ctx)
        except (UsageError, RequestError) as error:
            _fail(ctx, error, EXIT_USAGE)
        except StartupError as error:
            _fail(ctx, error, EXIT_CANNOT_START)
        return None


@click.group(
    cls=Group,
    context_settings={
        "help_option_names": ["-h", "--help"],
        "token_normalize_func": option_name,
        "rich_help_config": {"envvar_string": "[{}]", "style_option_envvar": "dim"},
    },
)
@click.version_option(package_name="tgwui-k8s", prog_name="tgwui-k8s")
def main() -> None:
    """Serve a language model with an OpenAI-compatible API, made fit for Kubernetes.

    Every setting is a flag, a TGWUI_ variable and a key of a YAML file; flags win over variables,
    variables over the file. Begin with:

    \b
      tgwui-k8s serve                         the built-in demo model on port 5000
      tgwui-k8s serve --model /models/NAME    another one
      tgwui-k8s config                        what is set, and where it came from
    """


def _fail(ctx: click.Context, error: Exception, exit_code: int) -> None:
    click.secho(f"Error: {error}", fg="red", err=True)
    ctx.exit(exit_code)
