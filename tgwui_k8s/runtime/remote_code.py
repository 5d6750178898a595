"""Python code that lies in a model folder: run only when the operator said so.

Transformers copies it into a cache of modules before importing it. That cache stands below the
home directory by default; ours is a fresh folder in $TMPDIR, gone when the process ends.
"""

from __future__ import annotations

import atexit
import shutil
import sys
import tempfile
from pathlib import Path

from transformers import PreTrainedModel, dynamic_module_utils

from tgwui_k8s.errors import UnsupportedModelError


def prepare_remote_code() -> None:
    """Say where Transformers may put the modules; again is harmless."""
    if dynamic_module_utils.HF_MODULES_CACHE not in sys.path:
        folder = tempfile.mkdtemp(prefix="tgwui-k8s-modules-")
        atexit.register(shutil.rmtree, folder, ignore_errors=True)
        dynamic_module_utils.HF_MODULES_CACHE = folder


def load_remote_class(folder: Path, reference: str) -> type[PreTrainedModel]:
    """The class that config.json's `auto_map` names; raises `UnsupportedModelError`."""
    prepare_remote_code()
    try:
        return dynamic_module_utils.get_class_from_dynamic_module(
            reference, folder, local_files_only=True
        )
    except Exception as error:  # foreign code raises what it likes
        reason = str(error).splitlines()[0][:200] if str(error) else type(error).__name__
        raise UnsupportedModelError(
            f"the Python code in {folder.name} cannot be loaded ({reason})"
        ) from error
