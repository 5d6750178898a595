"""`tgwui-k8s generate`: one prompt, no server."""

from __future__ import annotations

import random
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import rich_click as click

from tgwui_k8s.byte_size import format_byte_size
from tgwui_k8s.cli.options import show_warnings, with_settings
from tgwui_k8s.config import Settings
from tgwui_k8s.contract import LoadProgress, ProgressCallback
from tgwui_k8s.errors import UsageError
from tgwui_k8s.sampling import SamplingParams
from tgwui_k8s.settings import Provenance

if TYPE_CHECKING:
    from tgwui_k8s.llm import LLM

_SAMPLING = "Sampling"


@click.command()
@click.argument("prompt", required=False)
@click.option("--chat", is_flag=True, help="Send the prompt as a user's message.", panel=_SAMPLING)
@click.option("--system", metavar="TEXT", help="System message; implies --chat.", panel=_SAMPLING)
@click.option(
    "--max-tokens",
    type=click.IntRange(min=1),
    default=256,
    show_default=True,
    help="Most tokens to generate.",
    panel=_SAMPLING,
)
@click.option(
    "--temperature",
    type=click.FloatRange(min=0, max=100),
    default=1.0,
    show_default=True,
    help="Randomness; 0 always takes the most likely token.",
    panel=_SAMPLING,
)
@click.option(
    "--top-p",
    type=click.FloatRange(min=0, max=1, min_open=True),
    default=1.0,
    show_default=True,
    help="Only the most likely tokens that together have this probability.",
    panel=_SAMPLING,
)
@click.option(
    "--top-k",
    type=click.IntRange(min=0),
    default=0,
    show_default=True,
    help="Only so many of the most likely tokens; 0 is all of them.",
    panel=_SAMPLING,
)
@click.option(
    "--min-p",
    type=click.FloatRange(min=0, max=1),
    default=0.0,
    show_default=True,
    help="Only tokens at least this likely, relative to the most likely one.",
    panel=_SAMPLING,
)
@click.option(
    "--repetition-penalty",
    type=click.FloatRange(min=0.01),
    default=1.0,
    show_default=True,
    help="Above 1 makes tokens that have occurred less likely.",
    panel=_SAMPLING,
)
@click.option(
    "--seed",
    type=click.IntRange(min=0, max=2**63 - 1),
    help="Same seed, same text; default: another one every time.",
    panel=_SAMPLING,
)
@click.option(
    "--stop", multiple=True, metavar="TEXT", help="Ends the text. Repeatable.", panel=_SAMPLING
)
@with_settings("model", "engine", "neuron", "llama_cpp")
def generate(
    settings: Settings,
    provenance: Provenance,
    prompt: str | None,
    chat: bool,
    system: str | None,
    stop: tuple[str, ...],
    seed: int | None,
    **sampling: Any,
) -> None:
    """Complete PROMPT, or what comes on standard input, and print the text as it is generated.

    Loads the model into this process: no server, no port.

    \b
    Examples:
      tgwui-k8s generate "This is a cake recipe:" --seed 10
      tgwui-k8s generate --chat "Which port does the API use?" --temperature 0
      echo "Once upon a time" | tgwui-k8s generate --model /models/NAME --max-tokens 50
    """
    show_warnings(provenance)
    text = _read_prompt(prompt)
    if "" in stop:
        raise UsageError("--stop must not be empty")
    seed = random.getrandbits(63) if seed is None else seed
    params = SamplingParams(seed=seed, **sampling)
    # Imported here because it brings NumPy and the engine: the other commands start without them.
    from tgwui_k8s.llm import LLM

    with _progress_bar() as progress:
        llm = LLM(settings, progress=progress)
    with llm:
        tokens = _chat_prompt(llm, text, system) if chat or system else text
        for piece in llm.stream(tokens, params, stop=stop):
            click.echo(piece, nl=False)
        click.echo()


def _read_prompt(prompt: str | None) -> str:
    if prompt not in (None, "-"):
        return prompt
    if sys.stdin.isatty():
        raise UsageError("give a PROMPT, or pipe one in; see tgwui-k8s generate --help")
    return sys.stdin.read().rstrip("\n")


def _chat_prompt(llm: LLM, text: str, system: str | None) -> list[int]:
    messages = [{"role": "system", "content": system}] if system else []
    return llm.render_chat([*messages, {"role": "user", "content": text}])


@contextmanager
def _progress_bar() -> Iterator[ProgressCallback]:
    """Show on stderr how far loading is, where that is a terminal."""
    if not sys.stderr.isatty():
        yield _ignore
        return
    # Imported here because only a terminal wants it.
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

    columns = (TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task("starting", total=None)

        def show(progress: LoadProgress) -> None:
            total = progress.bytes_total
            size = f" {format_byte_size(total)}" if total else ""
            bar.update(
                task,
                description=progress.phase.replace("_", " ") + size,
                total=total or None,
                completed=progress.bytes_read,
            )

        yield show


def _ignore(progress: LoadProgress) -> None:
    """Nobody watches."""
