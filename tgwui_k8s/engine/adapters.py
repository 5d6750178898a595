"""Which LoRA adapters requests may name, and which of them are still in use.

An adapter is known to the runner, and to the prefix cache, by a key that is used once: loading
another adapter under an old name shares nothing with the old one. Unloading takes the name away at
once, and the weights when the last request that uses them has ended.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Protocol, runtime_checkable

from tgwui_k8s.contract import ModelRunner
from tgwui_k8s.errors import UnsupportedModelError


@runtime_checkable
class AdapterRunner(Protocol):
    """A `ModelRunner` that computes `ScheduledSequence.adapter`."""

    def load_adapter(self, key: str, folder: Path) -> None:
        """Read the adapter. Raises a `StartupError`, and then nothing has changed."""
        ...

    def unload_adapter(self, key: str) -> None:
        """Free an adapter that no sequence uses."""
        ...


class Adapters:
    """The adapters of one runner, by name."""

    def __init__(self, runner: ModelRunner) -> None:
        self._runner = runner
        self._keys: dict[str, str] = {}
        self._num_loads = 0
        self._num_users: Counter[str] = Counter()

    def load(self, name: str, folder: Path) -> None:
        """Make an adapter available; one of the same name is replaced.

        Raises a `StartupError`, and then nothing has changed.
        """
        if not isinstance(self._runner, AdapterRunner):
            raise UnsupportedModelError(
                f"loader '{self._runner.info.loader}' runs no LoRA adapters; the nearest is "
                "--loader Transformers"
            )
        self._num_loads += 1
        key = f"{name}#{self._num_loads}"
        self._runner.load_adapter(key, folder)
        self.unload(name)
        self._keys[name] = key

    def load_all(self, folders: Mapping[str, str] | None) -> None:
        """The same for every name, as in `LoadRequest.adapters`."""
        for name, folder in (folders or {}).items():
            self.load(name, Path(folder))

    def unload(self, name: str) -> None:
        """Let no new request use it; unknown names are ignored."""
        key = self._keys.pop(name, None)
        if key is not None and not self._num_users[key]:
            self._free(key)

    def acquire(self, name: str) -> str | None:
        """The key of an adapter for a request, which must be released; None for an unknown one.

        Without an adapter the key is empty.
        """
        key = self._keys.get(name) if name else ""
        if key:
            self._num_users[key] += 1
        return key

    def release(self, key: str) -> None:
        """The request with this key has ended."""
        if not key:
            return
        self._num_users[key] -= 1
        if not self._num_users[key] and key not in self._keys.values():
            self._free(key)

    def _free(self, key: str) -> None:
        del self._num_users[key]
        if isinstance(self._runner, AdapterRunner):
            self._runner.unload_adapter(key)
