"""The API process stays light."""

from __future__ import annotations

import subprocess
import sys

HEAVY = ("torch", "transformers", "accelerate", "safetensors", "pandas", "loaders")


def test_the_application_imports_nothing_heavy() -> None:
    """The port is open within a second because neither torch nor transformers is imported."""
    script = (
        "import sys, tgwui_k8s.api.app, tgwui_k8s.observability.log;"
        f"print([name for name in {HEAVY} if name in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, timeout=120, check=True
    )
    assert done.stdout.strip() == "[]"
