"""Build hook: compiles the native libraries where a C++ compiler is at hand.

Without one, or on another processor architecture, the package is built without them and models run
through Transformers alone: slower, the same answers.
"""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

FLAGS = [
    *("-O3", "-std=c++17", "-fPIC", "-shared", "-pthread"),
    *("-static-libstdc++", "-static-libgcc"),  # slim images have no C++ runtime
    "-Wl,-Bsymbolic",  # a library runs its own code, whatever else the process has loaded
    "-ffp-contract=off",  # the same bits from every compiler: sums are fused where the source says
]
AVX2 = ["-mavx2", "-mfma"]
AVX512 = [*AVX2, "-mavx512f", "-mavx512bw", "-mavx512vl", "-mavx512dq"]
VNNI = [*AVX512, "-mavx512vnni"]
NATIVE = Path("tgwui_k8s/native")
# The decoder once for each kind of processor: `VARIANTS` of runtime/native.py says who runs which,
# before any of its code runs.
LIBRARIES = {
    "decoder-avx512bf16": ("decoder.cpp", [*VNNI, "-mavx512bf16"]),
    "decoder-avx512vnni": ("decoder.cpp", VNNI),
    "decoder-avx512": ("decoder.cpp", AVX512),
    "decoder-avx2": ("decoder.cpp", AVX2),
}


class NativeBuildHook(BuildHookInterface[Any]):
    """Adds the libraries to the wheel."""

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """Compile, and mark the wheel as bound to this platform."""
        if self.target_name != "wheel" or platform.machine() not in ("x86_64", "AMD64"):
            return
        compiler = shutil.which("g++") or shutil.which("c++")
        if compiler is None:
            self.app.display_warning("no C++ compiler: the native libraries are left out")
            return
        with ThreadPoolExecutor(os.cpu_count()) as pool:
            compiled = pool.map(partial(self._compile, compiler), LIBRARIES)
            for name, library in zip(LIBRARIES, compiled, strict=True):
                if library is None:
                    self.app.display_warning(f"{name} does not compile here: left out")
                    continue
                build_data["artifacts"].append(str(library))
                build_data["pure_python"] = False
                build_data["tag"] = f"py3-none-{_platform_tag()}"

    def _compile(self, compiler: str, name: str) -> Path | None:
        """The library, put in place when it is complete: an engine may have the old one open."""
        source, flags = LIBRARIES[name]
        library, part = NATIVE / f"{name}.so", NATIVE / f"{name}.so.part"
        result = subprocess.run(
            [compiler, *FLAGS, *flags, str(NATIVE / source), "-o", str(part)],
            cwd=Path(self.root), capture_output=True, text=True, check=False,
        )  # fmt: skip
        if result.returncode != 0:
            sys.stderr.write(result.stderr[-4000:])
            return None
        (Path(self.root) / part).replace(Path(self.root) / library)
        return library


def _platform_tag() -> str:
    import sysconfig

    return sysconfig.get_platform().replace("-", "_").replace(".", "_")
