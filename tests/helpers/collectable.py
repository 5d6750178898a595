"""Which test modules can be imported where torch is missing, or Transformers is AWS Neuron's.

Python 3.10 is tested without torch in CI, and once with the Neuron image's torch 2.7 and
Transformers 4.48: a test module that imports what is not there is left out, and said so.
"""

from __future__ import annotations

import re
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path

from packaging.version import Version

_IMPORT = re.compile(r'^(?:from |import |\w+ = pytest\.importorskip\(")([\w.]+)', re.MULTILINE)
_HELPERS = re.compile(r"^from (tests\.helpers(?:\.\w+)?) import (\w+)", re.MULTILINE)
_OPTIONAL = (
    *("torch", "transformers", "safetensors", "sentence_transformers", "sentencepiece"),
    "gradio",
)
_BUILT_ON_TORCH = ("tgwui_k8s.runtime", "tgwui_k8s.demo.tiny", "loaders")
_BUILT_ON_GRADIO = "tgwui_k8s.ui.app"
_FREE_OF_TORCH = ("loaders.fake", "loaders.native", "tgwui_k8s.runtime.native")
_NEW_TRANSFORMERS = (
    *("loaders.hf_transformers", "loaders.hf_embeddings"),
    *("tgwui_k8s.runtime.cuda.backend", "tgwui_k8s.runtime.cuda.decode_graphs"),
    *("tgwui_k8s.runtime.model_step", "tgwui_k8s.runtime.paged_attention"),
    *("tgwui_k8s.runtime.paged_backend", "tgwui_k8s.runtime.transformers_attention"),
    *("tgwui_k8s.runtime.transformers_model", "tgwui_k8s.runtime.transformers_runner"),
)


def missing_modules() -> tuple[str, ...]:
    """Names that cannot be imported here, submodules included."""
    missing = [name for name in _OPTIONAL if find_spec(name) is None]
    if "gradio" in missing:
        missing.append(_BUILT_ON_GRADIO)
    if "torch" in missing:
        return (*missing, *_BUILT_ON_TORCH)
    try:
        is_old = Version(version("transformers")) < Version("5.17")
    except PackageNotFoundError:
        is_old = False
    return (*missing, *(_NEW_TRANSFORMERS if is_old else ()))


def imports_missing(path: Path, missing: tuple[str, ...]) -> bool:
    """True where the module at `path` imports one of `missing`, itself or by a test helper."""
    if not missing:
        return False
    source = path.read_text()
    imported = set(_IMPORT.findall(source)) - set(_FREE_OF_TORCH)
    if any(_is_within(name, parent) for name in imported for parent in missing):
        return True
    root = Path(__file__).parents[2]
    helpers = {f"{package}.{name}" for package, name in _HELPERS.findall(source)} | imported
    files = [root / f"{name.replace('.', '/')}.py" for name in helpers if "tests.helpers" in name]
    return any(file != path and file.is_file() and imports_missing(file, missing) for file in files)


def _is_within(name: str, parent: str) -> bool:
    return name == parent or name.startswith(f"{parent}.")
