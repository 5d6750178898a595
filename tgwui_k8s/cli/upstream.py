"""`tgwui-k8s upstream`: bring this project's abilities to a checkout of text-generation-webui."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING

import rich_click as click

from tgwui_k8s.errors import TgwuiError, UsageError

if TYPE_CHECKING:
    from tgwui_k8s.patching.plan import Finding

_DIR = click.argument(
    "folder", metavar="DIR", type=click.Path(path_type=Path, exists=True, file_okay=False)
)
_COLOURS = {"applied": "green", "applicable": "cyan", "not needed": "green", "conflict": "red"}


class _Group(click.RichGroup):
    """Errors of patching are a line and exit code 1."""

    def invoke(self, ctx: click.Context) -> object:
        try:
            return super().invoke(ctx)
        except UsageError:
            raise
        except TgwuiError as error:
            raise click.ClickException(str(error)) from None


@click.group(cls=_Group)
def upstream() -> None:
    """Patch a checkout of oobabooga/text-generation-webui, and take it back.

    \b
    Examples:
      tgwui-k8s upstream status ~/text-generation-webui
      tgwui-k8s upstream patch ~/text-generation-webui --only probes --diff --dry-run
      tgwui-k8s upstream patch ~/text-generation-webui
      tgwui-k8s upstream unpatch ~/text-generation-webui
    """


@upstream.command()
@_DIR
def status(folder: Path) -> None:
    """Show the version in DIR, and which abilities fit, are applied, or conflict and why.

    Exit code 1 where one conflicts.
    """
    found = _patching("operations").status(folder)
    click.echo(f"text-generation-webui {found.version}")
    for finding in found.findings:
        _show(finding)
    for path in found.edited_since:
        click.secho(f"{path} changed after patching", fg="yellow")
    if any(finding.reasons for finding in found.findings):
        sys.exit(1)


@upstream.command()
@_DIR
@click.option("--only", multiple=True, metavar="ABILITY", help="Not all; may be repeated.")
@click.option("--dry-run", is_flag=True, help="Write nothing.")
@click.option("--diff", "show_diff", is_flag=True, help="Show what changes.")
@click.option("--force", is_flag=True, help="Patch over uncommitted changes.")
def patch(folder: Path, only: tuple[str, ...], dry_run: bool, show_diff: bool, force: bool) -> None:
    """Apply the abilities to DIR: all of them, or none where one does not fit.

    Again is no harm. The files as they were are kept in DIR/.tgwui_k8s.
    """
    operations = _patching("operations")
    if show_diff:
        plan = operations.patch(folder, only, force=force, dry_run=True)
        click.echo(operations.diff(folder, plan), nl=False)
    plan = operations.patch(folder, only, force=force, dry_run=dry_run)
    places = ", ".join(f"{name} {number}" for name, number in plan.num_places.items())
    verb = "would change" if dry_run else "patched:"
    click.secho(f"{verb} {len(plan.contents)} files; places: {places}", fg="green")


@upstream.command()
@_DIR
@click.option("--force", is_flag=True, help="Give up what was edited in patched files since.")
def unpatch(folder: Path, force: bool) -> None:
    """Give DIR its files back as they were, byte by byte."""
    paths = _patching("operations").unpatch(folder, force=force)
    click.secho(f"{len(paths)} files are as they were" if paths else "nothing to do", fg="green")


@upstream.command()
@_DIR
@click.option(
    "--python",
    default=sys.executable,
    metavar="PATH",
    help="The interpreter that runs DIR; it needs upstream's requirements and this package.",
)
@click.option("--static", is_flag=True, help="Run nothing.")
def verify(folder: Path, python: str, static: bool) -> None:
    """Check a patched DIR: its code compiles, its hooks are there, its server answers.

    The server runs with a stub model, where upstream's requirements are installed.
    """
    verdict = _patching("verify").verify(folder, python, smoke=not static)
    click.echo(f"{', '.join(verdict.abilities) or 'nothing'} applied")
    click.echo(f"{verdict.num_files} files compile, {verdict.num_hooks} hooks")
    for outcome in verdict.outcomes:
        mark = click.style("no ", fg="red") if outcome.problem else click.style("yes", fg="green")
        click.echo(f"  {mark}  {outcome.question.text}")
    if verdict.skipped:
        click.secho(f"no smoke run: {verdict.skipped}", fg="yellow")
    for problem in verdict.problems:
        click.secho(problem, fg="red")
    if verdict.problems:
        sys.exit(1)


def _show(finding: Finding) -> None:
    state = click.style(f"{finding.state.value:<11}", fg=_COLOURS[finding.state.value])
    click.echo(f"  {state} {finding.patch.name:<14} {finding.patch.title}")
    for reason in finding.reasons:
        click.echo(f"{'':14} {reason}")


def _patching(name: str) -> ModuleType:
    """A module of `tgwui_k8s.patching`, which needs LibCST."""
    try:
        importlib.import_module("libcst")
    except ImportError:
        raise click.ClickException(
            "this command needs LibCST: pip install 'tgwui-k8s[upstream]'"
        ) from None
    return importlib.import_module(f"tgwui_k8s.patching.{name}")
