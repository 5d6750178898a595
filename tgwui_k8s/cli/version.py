"""`tgwui-k8s version`: what to put in a bug report."""

from __future__ import annotations

import platform
from importlib.metadata import PackageNotFoundError
from importlib.metadata import version as installed_version

import rich_click as click

from tgwui_k8s import __version__

_LIBRARIES = ("torch", "transformers", "tokenizers", "fastapi", "uvicorn")


@click.command()
def version() -> None:
    """Print the versions of this program, Python and the libraries that matter."""
    click.echo(f"tgwui-k8s {__version__}")
    click.echo(f"Python {platform.python_version()} on {platform.platform()}")
    for library in _LIBRARIES:
        click.echo(f"{library} {_version_of(library)}")


def _version_of(library: str) -> str:
    try:
        return installed_version(library)
    except PackageNotFoundError:
        return "not installed"
