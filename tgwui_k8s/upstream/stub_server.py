"""Run upstream's server.py with a model that is none: `python -m tgwui_k8s.upstream.stub_server`.

For smoke runs (`tgwui-k8s upstream verify`): the process is upstream's from its first line to its
last, only the class that would drive llama.cpp is ours. The prompt says what happens:

    ... fail ...      raises after the first word
    ... slowly ...    takes TGWUI_STUB_STEP_SECONDS before each of 20 words
"""

from __future__ import annotations

import os
import runpy
import struct
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

LOAD_SECONDS = "TGWUI_STUB_LOAD_SECONDS"
STEP_SECONDS = "TGWUI_STUB_STEP_SECONDS"

_CONTEXT = 2048
_UINT32 = 4


class StubModel:
    """Model and tokenizer in one, as both of upstream's llama.cpp classes are. Tokens are bytes."""

    n_ctx = _CONTEXT

    def __init__(self, path: Any) -> None:
        """Raises RuntimeError for a file that is called broken."""
        time.sleep(float(os.environ.get(LOAD_SECONDS, "0")))
        if "broken" in str(path):
            raise RuntimeError("the file is broken")
        self.last_prompt_token_count = 0

    @classmethod
    def from_pretrained(cls, path: Any) -> tuple[StubModel, StubModel]:
        """As upstream made models until 2025."""
        model = cls(path)
        return model, model

    def encode(self, text: Any, **_: Any) -> list[int]:
        """Bytes."""
        return list(str(text).encode())

    def decode(self, ids: Any, **_: Any) -> str:
        """Text."""
        return bytes(int(number) for number in ids).decode("utf-8", "replace")

    def generate(self, prompt: str, state: dict[str, Any]) -> str:
        """The whole text."""
        *_, text = self.generate_with_streaming(prompt, state)
        return text

    def generate_with_streaming(self, prompt: str, state: dict[str, Any]) -> Iterator[str]:
        """The text so far, word by word."""
        self.last_prompt_token_count = len(self.encode(prompt))
        is_slow = "slowly" in prompt
        text = ""
        for number in range(20 if is_slow else 4):
            if is_slow:
                time.sleep(float(os.environ.get(STEP_SECONDS, "0.1")))
            if number and "fail" in prompt:
                raise RuntimeError("the model failed as it was told")
            text += f"word{number} "
            yield text

    def is_multimodal(self) -> bool:
        """No pictures."""
        return False

    def stop(self) -> None:
        """Nothing to stop."""


def write_model(path: Path) -> None:
    """A file that upstream takes for a GGUF: a header with one key and no tensors."""
    key = b"llama.context_length"
    header = b"GGUF" + struct.pack("<IQQ", 3, 0, 1)
    entry = struct.pack("<Q", len(key)) + key + struct.pack("<II", _UINT32, _CONTEXT)
    path.write_bytes(header + entry)


def main(folder: str, arguments: list[str]) -> None:
    """Be `python server.py ARGUMENTS` in upstream's folder."""
    for name, of_class in (
        ("llama_cpp_server", "LlamaServer"),
        ("llamacpp_model", "LlamaCppModel"),
    ):
        module = ModuleType(f"modules.{name}")
        setattr(module, of_class, type(of_class, (StubModel,), {}))
        sys.modules[module.__name__] = module
    os.chdir(folder)
    sys.argv = ["server.py", *arguments]
    sys.path.insert(0, folder)
    runpy.run_path(str(Path(folder, "server.py")), run_name="__main__")


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2:])
