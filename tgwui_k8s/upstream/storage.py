"""Hooks for storage: upstream runs in a working copy of its own folder, so that nothing is lost.

Upstream reads and writes beside its code and in the current directory. `enter` makes a folder in
which its small files are copied (presets, characters, templates: it may change them) and
everything else is a link (code, models), and goes there. The folder of the checkout and the model
directory are then only ever read: a read-only root needs one writable directory.
"""

from __future__ import annotations

import os
import sys
import tempfile
from pathlib import Path

VARIABLE = "TGWUI_STATE_DIR"
"""Where the working copy goes; default: text-generation-webui/ below $TMPDIR. Empty at a start,
or what an earlier start left, which is kept."""

_COPIED = (
    *("cache", "characters", "grammars", "instruction-templates", "logs", "presets"),
    *("prompts", "softprompts", "training", "user_data", "settings.yaml", "settings.json"),
    "CMD_FLAGS.txt",
)
"""What upstream writes to, or beside what it reads. All of it together is a few MB."""
_LINKED_WITHIN = ("models", "image_models", "loras", "extensions", "mmproj")
"""Folders of weights and code within the copied ones: links, however large."""
_PATH_FLAGS = (
    *("--model-dir", "--lora-dir", "--image-model-dir", "--settings", "--user-data-dir"),
    *("--ssl-keyfile", "--ssl-certfile", "--gradio-auth-path", "--chat-template-file"),
    *("--disk-cache-dir", "--mmproj"),
)
_CACHES = {
    "HF_HOME": "huggingface",
    "XDG_CACHE_HOME": "xdg",
    "MPLCONFIGDIR": "matplotlib",
    "GRADIO_TEMP_DIR": "gradio",
    "NUMBA_CACHE_DIR": "numba",
    "TRITON_CACHE_DIR": "triton",
    "TORCHINDUCTOR_CACHE_DIR": "inductor",
    "TIKTOKEN_CACHE_DIR": "tiktoken",
}


def enter(script: str) -> None:
    """First line of upstream's server.py: make the working copy, go there, and take caches along.

    Raises SystemExit with what to do where the folder cannot be written.
    """
    checkout = Path(script).resolve().parent
    folder = state_dir()
    try:
        _make_copy(checkout, folder)
    except OSError as error:
        raise SystemExit(
            f"cannot write the working folder {folder}: {error.strerror}; set {VARIABLE} or TMPDIR "
            "to a writable directory (an emptyDir volume)"
        ) from None
    sys.argv[1:] = _absolute_paths(sys.argv[1:])
    os.chdir(folder)
    for variable, name in _CACHES.items():
        if variable not in os.environ:
            os.environ[variable] = str(folder / "caches" / name)
    os.environ[VARIABLE] = str(folder)


def user_config(path: str) -> str:
    """Where per-model settings are kept, instead of `path` in the read-only model directory.

    What the model directory brings is there at first.
    """
    ours = state_dir() / "config-user.yaml"
    given = Path(path)
    if not ours.exists() and given.is_file():
        ours.parent.mkdir(parents=True, exist_ok=True)
        ours.write_bytes(given.read_bytes())
    return str(ours)


def model_config(path: str) -> str:
    """Upstream's table of model settings: the model directory's, or the one upstream ships.

    A mounted volume hides the file that upstream keeps among its models.
    """
    shipped = Path("models", "config.yaml")
    return str(shipped) if shipped.is_file() and not Path(path).exists() else path


def state_dir() -> Path:
    """The working folder."""
    given = os.environ.get(VARIABLE)
    return Path(given).resolve() if given else Path(tempfile.gettempdir(), "text-generation-webui")


def _make_copy(checkout: Path, folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    if folder == checkout:
        return
    (folder / "caches").mkdir(exist_ok=True)
    for name in ("cache", "logs"):
        (folder / name).mkdir(exist_ok=True)
    for source in checkout.iterdir():
        if source.name.startswith("."):
            continue
        if source.name in _COPIED:
            _copy(source, folder / source.name)
        else:
            _link(source, folder / source.name)


def _copy(source: Path, target: Path) -> None:
    """Copy what is not there yet. Permissions are not copied: a read-only file may be changed."""
    if source.is_file():
        if not target.exists():
            target.write_bytes(source.read_bytes())
        return
    target.mkdir(exist_ok=True)
    for child in source.iterdir():
        if child.name in _LINKED_WITHIN:
            _link(child, target / child.name)
        else:
            _copy(child, target / child.name)


def _link(source: Path, target: Path) -> None:
    """A link to the checkout's own; one that an earlier checkout left is renewed."""
    if target.is_symlink() and os.readlink(target) != str(source):
        target.unlink()
    if not target.exists():
        target.symlink_to(source)


def _absolute_paths(words: list[str]) -> list[str]:
    """The command line with paths that mean the same in another directory."""
    absolute = []
    previous = ""
    for word in words:
        flag, equals, value = word.partition("=")
        if previous in _PATH_FLAGS:
            absolute.append(os.path.abspath(word))
        elif equals and flag in _PATH_FLAGS:
            absolute.append(f"{flag}={os.path.abspath(value)}")
        else:
            absolute.append(word)
        previous = word
    return absolute
