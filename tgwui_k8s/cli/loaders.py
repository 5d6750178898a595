"""`tgwui-k8s loaders`: which loaders there are, what each needs, and whether it is there."""

from __future__ import annotations

from typing import TYPE_CHECKING

import rich_click as click

from tgwui_k8s.cli.tables import print_table

if TYPE_CHECKING:
    from tgwui_k8s.registry import LoaderEntry


@click.command()
@click.argument("name", required=False)
def loaders(name: str | None) -> None:
    """List the loaders, or the options of one.

    The list reads package metadata and imports nothing. With NAME, the loader's library is
    imported and its options for --loader-option are shown.

    \b
    Examples:
      tgwui-k8s loaders
      tgwui-k8s loaders Transformers
    """
    # Imported here because a server that starts has no use for package metadata.
    from tgwui_k8s.registry import available, get_loader

    if name is None:
        print_table(("loader", "installed", "needs", "to install"), map(_row, available()))
        return
    loader = get_loader(name)
    if not loader.options:
        click.echo(f"{loader.name} has no options of its own.")
        return
    print_table(("option", "meaning"), sorted(loader.options.items()))


def _row(entry: LoaderEntry) -> tuple[str, ...]:
    return (
        entry.name,
        "yes" if entry.is_installed else f"no: {', '.join(entry.missing)}",
        ", ".join(entry.requirements) or "nothing more",
        "-" if entry.is_installed else entry.install_line,
    )
