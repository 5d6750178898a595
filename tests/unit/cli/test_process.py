"""The program as a process: what it imports, and how it ends."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

HEAVY = ("torch", "transformers", "numpy", "fastapi", "uvicorn", "rich.table", "loaders")


def python(*arguments: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    """Run this interpreter without the variables of this test run."""
    env = {key: value for key, value in os.environ.items() if not key.startswith("TGWUI_")}
    return subprocess.run(
        [sys.executable, *arguments], cwd=cwd, env=env, capture_output=True, text=True, timeout=60
    )


def test_console_script_and_module_are_one_program(tmp_path: Path) -> None:
    """`python -m tgwui_k8s` works from any folder and exits with the command's code."""
    good = python("-m", "tgwui_k8s", "config", "--port", "80", cwd=tmp_path)
    bad = python("-m", "tgwui_k8s", "config", "--port", "x", cwd=tmp_path)
    script = Path(sys.executable).with_name("tgwui-k8s")
    installed = subprocess.run([script, "--version"], capture_output=True, text=True, cwd=tmp_path)

    assert good.returncode == 0
    assert "port\t80\tflag\tTGWUI_PORT" in good.stdout.splitlines()
    assert (bad.returncode, bad.stderr) == (2, "Error: --port: 'x' is not a whole number\n")
    assert installed.stdout.startswith("tgwui-k8s, version")


def test_parsing_imports_nothing_heavy(tmp_path: Path) -> None:
    """The port opens within a second of the start: parsing arguments must cost next to nothing."""
    program = (
        f"import sys, tgwui_k8s.cli;print([name for name in {HEAVY!r} if name in sys.modules])"
    )

    assert python("-c", program, cwd=tmp_path).stdout == "[]\n"


def test_the_engine_starts_before_the_web_framework_is_imported(tmp_path: Path) -> None:
    """What only requests need is imported while the engine loads; numpy, while none embeds, never.

    Other commands than the one that was called are not imported either.
    """
    program = (
        "import sys, tgwui_k8s.cli.serve, tgwui_k8s.life_cycle;"
        "early = [name for name in sys.argv[1].split() if name in sys.modules];"
        "import tgwui_k8s.http_server;"
        "print(early, 'numpy' in sys.modules, 'tgwui_k8s.cli.models' in sys.modules)"
    )
    late = "fastapi pydantic uvicorn jinja2 tokenizers numpy"

    assert python("-c", program, late, cwd=tmp_path).stdout == "[] False False\n"


def on_terminal(*arguments: str, cwd: Path) -> str:
    """What the program shows on a terminal 200 columns wide."""
    leader, follower = os.openpty()
    env = {**os.environ, "COLUMNS": "200", "TERM": "xterm-256color"}
    subprocess.run(
        [sys.executable, "-m", "tgwui_k8s", *arguments],
        stdout=follower,
        stderr=follower,
        stdin=follower,
        cwd=cwd,
        env=env,
        timeout=60,
    )
    os.close(follower)
    shown = os.read(leader, 100_000).decode()
    os.close(leader)
    return shown


def test_a_terminal_gets_tables_with_colour(tmp_path: Path) -> None:
    """On a terminal the lists are tables."""
    shown = on_terminal("loaders", cwd=tmp_path)

    assert "\x1b[" in shown
    assert "Transformers" in shown
    assert "\t" not in shown


def test_a_terminal_sees_how_far_loading_is(tmp_path: Path) -> None:
    """`generate` shows progress while it loads, and leaves only the text behind."""
    shown = on_terminal(
        "generate", "--loader", "fake", "--model", "fake", "--max-tokens", "9",
        "--loader-option", "load_seconds=0.3", "hello", cwd=tmp_path,
    )  # fmt: skip

    assert "loading" in shown
    assert shown.rstrip().split("\x1b[2K")[-1].strip()


def test_a_terminal_is_asked_for_a_prompt(tmp_path: Path) -> None:
    """Without a prompt and without a pipe there is nothing to wait for."""
    assert "give a PROMPT" in on_terminal("generate", "--loader", "fake", cwd=tmp_path)
