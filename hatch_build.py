"""Build hook: compiles the native libraries where a C++ compiler is at hand.

Without one, or on another processor architecture, the package is built without them and models run
through Transformers alone: slower, the same answers.
"""

from __future__ import annotations

import platform
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

FLAGS = [
    *("-O3", "-std=c++17", "-fPIC", "-shared", "-pthread"),
    *("-static-libstdc++", "-static-libgcc"),  # slim images have no C++ runtime
]
AVX512 = [
    *("-mfma", "-mavx512f", "-mavx512bw", "-mavx512vl", "-mavx512dq"),
    *("-mavx512bf16", "-mavx512vnni"),
]
NATIVE = Path("tgwui_k8s/native")
SOURCES = {
    NATIVE / "decoder.cpp": AVX512,
    NATIVE / "quantized_linear.cpp": [],  # chooses by the processor it finds itself on
}


class NativeBuildHook(BuildHookInterface[Any]):
    """Adds `decoder.so` and `quantized_linear.so` to the wheel."""

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """Compile, and mark the wheel as bound to this platform."""
        if self.target_name != "wheel" or platform.machine() not in ("x86_64", "AMD64"):
            return
        compiler = shutil.which("g++") or shutil.which("c++")
        if compiler is None:
            self.app.display_warning("no C++ compiler: the native libraries are left out")
            return
        for source, flags in SOURCES.items():
            library = source.with_suffix(".so")
            if not self._compile([compiler, *FLAGS, *flags, str(source), "-o", str(library)]):
                self.app.display_warning(f"{source.name} does not compile here: left out")
                continue
            build_data["artifacts"].append(str(library))
            build_data["pure_python"] = False
            build_data["tag"] = f"py3-none-{_platform_tag()}"

    def _compile(self, command: list[str]) -> bool:
        result = subprocess.run(
            command, cwd=Path(self.root), capture_output=True, text=True, check=False
        )
        if result.returncode != 0:
            sys.stderr.write(result.stderr[-4000:])
        return result.returncode == 0


def _platform_tag() -> str:
    import sysconfig

    return sysconfig.get_platform().replace("-", "_").replace(".", "_")
