"""Process 1 of the image: upstream's server.py, told by the same variables as our own engine.

`python -m tgwui_k8s.upstream.launch serve [FLAG ...]` in the folder of the checkout. What the
manifests set (TGWUI_MODEL, TGWUI_API_KEY_FILE, ...) becomes upstream's flags inside this process,
so that no key shows in `ps`; flags that are given win, because they come last.
"""

from __future__ import annotations

import os
import runpy
import sys
from collections.abc import Mapping
from pathlib import Path

_FLAGS = {
    "TGWUI_PORT": "--api-port",
    "TGWUI_MODEL": "--model",
    "TGWUI_MODEL_DIR": "--model-dir",
    "TGWUI_LOADER": "--loader",
    "TGWUI_TP_DEGREE": "--tp-degree",
    "TGWUI_AMP": "--amp",
    "TGWUI_N_POSITIONS": "--n-positions",
    "TGWUI_CONTEXT_BUCKETS": "--context-buckets",
    "TGWUI_NEURON_ARTIFACTS": "--neuron-artifacts",
}
_MEANS_NONE = {("TGWUI_MODEL", "demo"), ("TGWUI_LOADER", "auto")}
"""Values of ours that upstream has no word for: its own default is what is left."""
_KEYS = {"TGWUI_API_KEY": "--api-key", "TGWUI_ADMIN_KEY": "--admin-key"}
_ANYWHERE = ("0.0.0.0", "::")  # noqa: S104 - compared with, not bound to
_LOOPBACK = ("127.0.0.1", "localhost", "::1")


def flags(environ: Mapping[str, str]) -> list[str]:
    """Upstream's flags for our variables. Raises SystemExit (code 2) for an unreadable key file."""
    made = ["--api"]
    host = environ.get("TGWUI_HOST", "127.0.0.1")
    if host not in _LOOPBACK:
        made.append("--listen")
    if host not in (*_LOOPBACK, *_ANYWHERE):
        made += ["--listen-host", host]
    for variable, flag in _FLAGS.items():
        value = environ.get(variable, "")
        if value and (variable, value) not in _MEANS_NONE:
            made += [flag, value]
    for variable, flag in _KEYS.items():
        key = _first_key(environ, variable)
        if key:
            made += [flag, key]
    return made


def main(words: list[str]) -> None:
    """Be `python server.py FLAGS`, in the current directory."""
    given = words[1:] if words[:1] == ["serve"] else words
    script = Path("server.py").resolve()
    sys.argv = [str(script), *flags(os.environ), *given]
    sys.path.insert(0, str(script.parent))
    os.umask(0o002)
    runpy.run_path(str(script), run_name="__main__")


def _first_key(environ: Mapping[str, str], variable: str) -> str:
    """Upstream knows one key: the first of the variable's or the file's."""
    text = environ.get(variable, "")
    path = environ.get(f"{variable}_FILE")
    if not text and path:
        try:
            text = Path(path).read_text(encoding="utf-8")
        except OSError as error:
            sys.stderr.write(f"{variable}_FILE: cannot read {path}: {error.strerror}\n")
            raise SystemExit(2) from None
    lines = [line.strip() for line in text.replace(",", "\n").splitlines()]
    return next((line for line in lines if line and not line.startswith("#")), "")


if __name__ == "__main__":
    main(sys.argv[1:])
