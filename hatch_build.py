"""Build hook: compiles the native decoder where a C++ compiler is at hand.

Without one, or on another processor architecture, the package is built without it and models run
through the Transformers loader: slower, the same answers.
"""

from __future__ import annotations

import platform
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

SOURCE = Path("tgwui_k8s/native/decoder.cpp")
LIBRARY = SOURCE.with_suffix(".so")
FLAGS = [
    *("-O3", "-std=c++17", "-fPIC", "-shared", "-pthread"),
    *("-static-libstdc++", "-static-libgcc"),  # slim images have no C++ runtime
    *("-mfma", "-mavx512f", "-mavx512bw", "-mavx512vl", "-mavx512dq"),
    *("-mavx512bf16", "-mavx512vnni"),
]


class NativeBuildHook(BuildHookInterface[Any]):
    """Adds `decoder.so` to the wheel."""

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """Compile, and mark the wheel as bound to this platform."""
        if self.target_name != "wheel" or platform.machine() not in ("x86_64", "AMD64"):
            return
        compiler = shutil.which("g++") or shutil.which("c++")
        if compiler is None:
            self.app.display_warning("no C++ compiler: the native decoder is left out")
            return
        root = Path(self.root)
        result = subprocess.run(
            [compiler, *FLAGS, str(SOURCE), "-o", str(LIBRARY)],
            cwd=root,
            capture_output=True,
            text=True,
            check=False,
        )
        if result.returncode != 0:
            sys.stderr.write(result.stderr[-4000:])
            self.app.display_warning("the native decoder does not compile here: left out")
            return
        build_data["artifacts"].append(str(LIBRARY))
        build_data["pure_python"] = False
        build_data["tag"] = f"py3-none-{_platform_tag()}"


def _platform_tag() -> str:
    import sysconfig

    return sysconfig.get_platform().replace("-", "_").replace(".", "_")
